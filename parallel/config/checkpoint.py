"""Configuration of checkpoints."""

from __future__ import annotations

import re
from dataclasses import dataclass

from parallel.config.checks import require, require_number

NEVER = "never"
INTERVAL = re.compile(r"([1-9][0-9]{0,8}) (epoch|step|minute)s?")
MOST_KEPT = 1000


@dataclass(frozen=True)
class CheckpointConfig:
    """When a run saves its state, and what it keeps."""

    every: str = "1 epoch"
    """Interval in epochs, steps or minutes, as in "10 minutes"; or never."""
    keep: int = 2
    """Number of checkpoints to keep, the newest ones. With one, a damaged checkpoint has no
    replacement."""
    best: bool = False
    """Whether to keep the one with the highest validation accuracy as well."""
    final: bool = True
    """Whether a finished run keeps its weights in model.safetensors."""

    def __post_init__(self) -> None:
        require(
            self.every == NEVER or INTERVAL.fullmatch(self.every) is not None,
            "trainer.checkpoint.every",
            self.every,
            'must be never or a whole number of epochs, steps or minutes, as in "2 epochs" or "10 minutes"',
        )
        require_number("trainer.checkpoint.keep", self.keep, 1, MOST_KEPT)

    @property
    def saves(self) -> bool:
        """Whether a run saves its state at all, be it at the end."""
        return self.every != NEVER or self.final

    @property
    def interval(self) -> tuple[int, str] | None:
        """Number and unit (epoch, step or minute) of the interval. None: never."""
        found = INTERVAL.fullmatch(self.every)
        return None if found is None else (int(found[1]), found[2])
