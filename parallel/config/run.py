"""Configuration of one run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from parallel.config.checks import MOST_WORKERS, require, require_number
from parallel.config.cluster import ClusterConfig
from parallel.config.data import DataConfig
from parallel.config.model import ModelConfig
from parallel.config.peer import PeerConfig
from parallel.config.strategy import StrategyConfig
from parallel.config.tracker import TrackerConfig
from parallel.config.trainer import TrainerConfig

MOST_REPEATS = 1000
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
    repeats: int = 1
    """In a sweep: how many times each of its runs is made, with seeds of their own (docs/records.md)."""
    repeat: int = 1
    """Number of this run among its repetitions, from 1; the sweep sets it."""
    resume: str = AUTO
    """auto: continue the unfinished run in the run directory, if there is one; never; or the run
    directory or the checkpoint to continue from, in a run of its own."""

    def __post_init__(self) -> None:
        require_number("workers", self.workers, 1, MOST_WORKERS)
        require_number("repeats", self.repeats, 1, MOST_REPEATS)
        require_number("repeat", self.repeat, 1, MOST_REPEATS)
        if self.trainer.batch_per_worker is not None:
            # Derived here, so that it follows the workers whenever they are replaced.
            batch = self.trainer.batch_per_worker * self.worker_count()
            object.__setattr__(self, "trainer", dataclasses.replace(self.trainer, batch_size=batch))
        require(
            self.trainer.trace is False or self.strategy.makes_plan,
            "trainer.trace",
            self.trainer.trace,
            f"needs a plan, and strategy={self.strategy.name} has none: torch's own profiler shows its steps",
        )
        require(
            not self.trainer.graphs or self.strategy.makes_plan,
            "trainer.graphs",
            self.trainer.graphs,
            f"captures the steps of a plan, and strategy={self.strategy.name} has none; use false",
        )
        if isinstance(self.strategy, PeerConfig):
            require(
                self.strategy.compiles or not self.trainer.compile,
                "trainer.compile",
                self.trainer.compile,
                f"must be false for strategy={self.strategy.name}",
            )
            self.strategy.check_precision(self.trainer.precision)
            require(
                self.strategy.shares_gpu or not self.cluster.share_gpu,
                "cluster.share_gpu",
                "true",
                f"does not work with strategy={self.strategy.name}, whose messages gloo does not have for "
                "tensors of a GPU: give every worker a GPU, or use cluster.device=cpu",
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
