"""What the command line says about the calibration itself, besides the configuration that it shares with training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parallel.config import require

PREFIX = "calibrate."


@dataclass(frozen=True)
class Settings:
    """How long to measure, and whether to keep what is there."""

    budget_s: float = 180.0
    """Seconds to measure, about: what does not fit in is predicted."""
    fresh: bool = False
    """Forget what was measured before."""

    def __post_init__(self) -> None:
        require(self.budget_s > 0, "calibrate.budget_s", self.budget_s, "must be positive seconds")

    @staticmethod
    def split(arguments: Sequence[str]) -> tuple[Settings, list[str]]:
        """The settings among the arguments, and the other arguments."""
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
        return Settings(budget, fresh == "true"), rest
