"""Configuration of one run."""

from __future__ import annotations

from dataclasses import dataclass, field

from parallel.config.checks import MOST_WORKERS, require, require_number
from parallel.config.cluster import ClusterConfig
from parallel.config.data import DataConfig
from parallel.config.model import ModelConfig
from parallel.config.strategy import StrategyConfig
from parallel.config.tracker import TrackerConfig
from parallel.config.trainer import TrainerConfig

AUTO, NEVER = "auto", "never"
"""Choices of `resume` beside a path."""


@dataclass(frozen=True)
class Config:
    """One run."""

    model: ModelConfig
    data: DataConfig
    strategy: StrategyConfig
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    workers: int | None = None
    """Number of workers. None: the world size of torchrun, or one without torchrun."""
    sweep: str | None = None
    """Name of the sweep that this run belongs to; the group in W&B."""
    resume: str = AUTO
    """auto: continue the unfinished run in the run directory, if there is one; never; or the run
    directory or the checkpoint to continue from, in a run of its own."""

    def __post_init__(self) -> None:
        require_number("workers", self.workers, 1, MOST_WORKERS)
        require(
            self.trainer.trace is False or self.strategy.makes_plan,
            "trainer.trace",
            self.trainer.trace,
            f"needs a plan, and strategy={self.strategy.name} has none: torch's own profiler shows its steps",
        )
        require(self.resume != "", "resume", self.resume, "must be auto, never or a run or checkpoint")
        stored = self.data.stored_size
        require(
            stored is None or stored >= self.model.image_size,
            "data.stored_size",
            stored,
            f"must be at least model.image_size={self.model.image_size}",
        )

    def worker_count(self, world: int = 1) -> int:
        """Return the number of workers: that of the strategy if fixed, else `workers`, else
        `world`."""
        return self.strategy.fixed_workers or self.workers or world
