"""Configuration of what the workers run on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from parallel.config.checks import require, require_one_of


@dataclass(frozen=True)
class ClusterConfig:
    """What the workers run on."""

    device: str = "auto"
    """auto, cpu or cuda (one GPU per worker)."""
    backend: str = "auto"
    """auto, gloo or nccl."""
    threads: int = 1
    """CPU threads of each worker."""
    shared_memory: bool = True
    """CPU workers of one host hand tensors over in shared memory; false: by the network, as between hosts."""
    timeout_s: float = 60.0
    """How long a worker may wait for another, or give no sign of life, before the run ends."""
    hardware: dict[str, Any] | None = None
    """Numbers that simulation and search price plans with, written by hand (docs/clusters.md). None: calibrated."""
    file: str | None = None
    """A file of such numbers, which goes before `hardware` and the calibration that is kept."""
    cache: str = ".cache/parallel/clusters"
    """Folder in which parallel.calibrate keeps what it measured."""

    def __post_init__(self) -> None:
        require_one_of("cluster.device", self.device, ("auto", "cpu", "cuda"))
        require_one_of("cluster.backend", self.backend, ("auto", "gloo", "nccl"))
        require(self.threads >= 1, "cluster.threads", self.threads, "must be at least 1")
        require(self.timeout_s > 0, "cluster.timeout_s", self.timeout_s, "must be positive")
