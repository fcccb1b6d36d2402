"""Options of `strategy=ddp`: torch's DistributedDataParallel, the outside reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from parallel.config.checks import require_positive
from parallel.config.peer import PeerConfig

BUCKET_MB, FIRST_BUCKET_MB = 25.0, 1.0
"""torch's defaults. A size that DDP is given is that of the first bucket, too."""


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
    bucket_mb: float = BUCKET_MB
    """torch's bucket_cap_mb."""

    tool: ClassVar[str] = "DDP"
    compiles: ClassVar[bool] = True
    shares_gpu: ClassVar[bool] = True

    @property
    def all_reduce_mb(self) -> float:
        return self.bucket_mb

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("strategy.bucket_mb", self.bucket_mb, 10**6)
