"""Options of a calibration, besides the configuration that it shares with training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parallel.config import require

PREFIX = "calibrate."


@dataclass(frozen=True)
class CalibrationOptions:
    """Time to measure, and whether to start over."""

    budget_s: float = 180.0
    """Approximate seconds to measure. Shapes that do not fit into it are predicted by the
    regression."""
    fresh: bool = False
    """Whether to discard an earlier calibration instead of extending it."""

    def __post_init__(self) -> None:
        require(self.budget_s > 0, "calibrate.budget_s", self.budget_s, "must be positive seconds")

    @staticmethod
    def split(arguments: Sequence[str]) -> tuple[CalibrationOptions, list[str]]:
        """Return the options among the arguments, and the other arguments."""
        own = dict(a.removeprefix(PREFIX).split("=", 1) for a in arguments if a.startswith(PREFIX) and "=" in a)
        rest = [a for a in arguments if not (a.startswith(PREFIX) and "=" in a)]
        for key in own:
            require(key in ("budget_s", "fresh"), "calibrate", key, "is not known; its keys are budget_s, fresh")
        try:
            budget = float(own.get("budget_s", "180"))
        except ValueError as error:
            raise ValueError(f"calibrate.budget_s={own['budget_s']} must be a number of seconds") from error
        fresh = own.get("fresh", "false")
        require(fresh in ("true", "false"), "calibrate.fresh", fresh, "must be true or false")
        return CalibrationOptions(budget, fresh == "true"), rest
