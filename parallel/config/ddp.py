"""Options of `strategy=ddp`: torch's DistributedDataParallel, the outside reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from parallel.config.checks import require_positive
from parallel.config.peer import PeerConfig

BUCKET_MB, FIRST_BUCKET_MB = 25.0, 1.0
"""torch's sizes if it is given none. A size that it is given is that of the first bucket, too."""


@dataclass(frozen=True)
class WrappedDdp(PeerConfig):
    """Options of tools that wrap DDP and leave its buckets as they are."""

    @property
    def all_reduce_mb(self) -> float:
        return BUCKET_MB

    @property
    def first_all_reduce_mb(self) -> float:
        return FIRST_BUCKET_MB


@dataclass(frozen=True)
class Ddp(PeerConfig):
    """How DDP sums gradients."""

    name: str = "ddp"
    bucket_mb: float | None = None
    """torch's bucket_cap_mb. None: torch's own sizes, by which the first bucket is small and its sum starts early."""

    tool: ClassVar[str] = "DDP"
    compiles: ClassVar[bool] = True
    shares_gpu: ClassVar[bool] = True

    @property
    def all_reduce_mb(self) -> float:
        return BUCKET_MB if self.bucket_mb is None else self.bucket_mb

    @property
    def first_all_reduce_mb(self) -> float | None:
        return FIRST_BUCKET_MB if self.bucket_mb is None else None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bucket_mb is not None:
            require_positive("strategy.bucket_mb", self.bucket_mb, 10**6)
