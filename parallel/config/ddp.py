"""Options of `strategy=ddp`: torch's DistributedDataParallel, the outside reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from parallel.config.checks import require_positive
from parallel.config.strategy import StrategyConfig


@dataclass(frozen=True)
class Ddp(StrategyConfig):
    """How DDP sums gradients."""

    name: str = "ddp"
    bucket_mb: float = 25.0
    """torch's bucket_cap_mb."""

    makes_plan: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_positive("strategy.bucket_mb", self.bucket_mb, 10**6)
