"""Configuration of one run."""

from __future__ import annotations

from dataclasses import dataclass, field

from parallel.config.checks import require
from parallel.config.cluster import ClusterConfig
from parallel.config.data import DataConfig
from parallel.config.model import ModelConfig
from parallel.config.strategy import StrategyConfig
from parallel.config.tracker import TrackerConfig
from parallel.config.trainer import TrainerConfig


@dataclass
class Config:
    """One run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    workers: int | None = None
    """How many workers the plan is for. None: the world that torchrun made. `single` always takes one."""
    sweep: str | None = None
    """The sweep that this run belongs to: the W&B group."""

    def __post_init__(self) -> None:
        require(self.workers is None or self.workers >= 1, "workers", self.workers, "must be at least 1")
        require(self.trainer.trace is False or self.strategy.name != "ddp", "trainer.trace", self.trainer.trace,
                "needs a plan, and strategy=ddp has none: torch's own profiler shows its steps")
        stored = self.data.stored_size
        require(stored is None or stored >= self.model.image_size, "data.stored_size", stored,
                f"must be at least model.image_size={self.model.image_size}")

