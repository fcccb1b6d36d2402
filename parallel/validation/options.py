"""Options of a validation, besides the configuration that it shares with training."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.config import require, require_number
from parallel.config.checks import MOST_SAMPLES, MOST_STEPS


@dataclass(frozen=True)
class ValidationOptions:
    """Which plans to measure, how often, and where to write."""

    batch_sizes: tuple[int, ...] = (128, 96)
    """Global batch sizes. Calibrate for one of them: plans with the others are held out."""
    runners_up: int = 5
    """Plans of each batch size that differ from the optimum in one op."""
    random: int = 8
    """Plans of each batch size that are drawn at random."""
    blocks: int = 5
    """Measurements of each plan."""
    steps: int = 2
    """Timed steps of each measurement."""
    warm_up: int = 1
    """Untimed steps of each measurement."""
    out: str = "runs/validation"
    """Folder of the file to write."""

    def __post_init__(self) -> None:
        require(len(self.batch_sizes) >= 1, "batch_sizes", "", "must be at least one whole number")
        for batch_size in self.batch_sizes:
            require_number("batch_sizes", batch_size, 1, MOST_SAMPLES)
        for name, least in (("runners_up", 0), ("random", 0), ("blocks", 1), ("steps", 1), ("warm_up", 0)):
            require_number(name, getattr(self, name), least, MOST_STEPS)
