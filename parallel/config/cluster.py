"""Configuration of the hardware that workers run on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from parallel.config.checks import (
    MOST_SECONDS,
    MOST_THREADS,
    require_number,
    require_one_of,
    require_plain,
    require_positive,
)


@dataclass(frozen=True)
class ClusterConfig:
    """The hardware that workers run on, real or simulated."""

    device: str = "auto"
    """auto, cpu or cuda (one GPU per worker)."""
    backend: str = "auto"
    """auto, gloo or nccl."""
    threads: int = 1
    """CPU threads of each worker."""
    shared_memory: bool = True
    """Whether CPU workers of one host pass tensors in shared memory; false: through the network
    stack, as between hosts."""
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
        require_number("cluster.threads", self.threads, 1, MOST_THREADS)
        require_positive("cluster.timeout_s", self.timeout_s, MOST_SECONDS)
        require_plain("cluster.hardware", self.hardware)
