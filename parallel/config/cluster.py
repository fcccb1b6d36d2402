"""Configuration of the hardware that workers run on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from parallel.config.checks import (
    MOST_SECONDS,
    MOST_THREADS,
    require,
    require_number,
    require_one_of,
    require_plain,
    require_positive,
)

MOST_FLOWS = 16


@dataclass(frozen=True)
class ClusterConfig:
    """The hardware that workers run on, real or simulated."""

    device: str = "auto"
    """auto, cpu or cuda (one GPU per worker)."""
    backend: str = "auto"
    """auto, gloo or nccl."""
    share_gpu: bool = False
    """Whether workers may share a GPU: their messages then go through host memory and gloo. For checking
    results; the times of such runs are not compared."""
    threads: int = 1
    """CPU threads of each worker."""
    shared_memory: bool = True
    """Whether CPU workers of one host pass tensors in shared memory; false: through the network
    stack, as between hosts."""
    flows: int = 2
    """Connections to each worker of another host, on CPUs. With 2 or more, large messages are spread over
    all but the first, so that small ones need not wait for them."""
    timeout_s: float = 60.0
    """Seconds that a worker may wait for another, or be silent, before the run ends."""
    hardware: dict[str, Any] | None = None
    """Cluster description for simulation and search, written by hand (docs/clusters.md). None: use
    the calibration of this machine."""
    file: str | None = None
    """Path of a cluster file; overrides `hardware` and the calibration of this machine."""
    cache: str = ".cache/parallel/clusters"
    """Folder of the calibrations that parallel.calibrate writes."""

    def __post_init__(self) -> None:
        require_one_of("cluster.device", self.device, ("auto", "cpu", "cuda"))
        require_one_of("cluster.backend", self.backend, ("auto", "gloo", "nccl"))
        require(
            not self.share_gpu or self.device != "cpu",
            "cluster.share_gpu",
            "true",
            "needs a GPU, and cluster.device=cpu uses none: leave out one of them",
        )
        require(
            not self.share_gpu or self.backend != "nccl",
            "cluster.share_gpu",
            "true",
            "needs cluster.backend=gloo: NCCL connects workers with a GPU each",
        )
        require(
            self.backend != "nccl" or self.device != "cpu",
            "cluster.backend",
            "nccl",
            "moves tensors of GPUs, and cluster.device=cpu has none: use gloo",
        )
        require_number("cluster.threads", self.threads, 1, MOST_THREADS)
        require_number("cluster.flows", self.flows, 1, MOST_FLOWS)
        require_positive("cluster.timeout_s", self.timeout_s, MOST_SECONDS)
        require_plain("cluster.hardware", self.hardware)

    def require_own_gpus(self, command: str) -> None:
        """Raise `ValueError` if workers may share a GPU, for a command that measures times."""
        require(
            not self.share_gpu,
            "cluster.share_gpu",
            "true",
            f"is for checking results, and {command} measures times: workers need a GPU each",
        )
