"""Options of a calibration, besides the configuration that it shares with training."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.config import require_positive
from parallel.config.checks import MOST_SECONDS


@dataclass(frozen=True)
class CalibrationOptions:
    """Time to measure, and whether to start over."""

    budget_s: float = 180.0
    """Approximate seconds to measure; the regression predicts the shapes that do not fit in."""
    fresh: bool = False
    """Whether to discard an earlier calibration instead of extending it."""

    def __post_init__(self) -> None:
        require_positive("budget_s", self.budget_s, MOST_SECONDS)
