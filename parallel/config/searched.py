"""Options of `strategy=searched`: the fastest plan that a search finds on the cluster (docs/search.md)."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.config.checks import require, require_one_of
from parallel.config.strategy import StrategyConfig

SEARCHES = ("exact", "mcmc", "exhaustive")


@dataclass(frozen=True)
class Searched(StrategyConfig):
    """How to search, whether to time what was found, and where found plans are kept."""

    name: str = "searched"
    method: str = "exact"
    """exact (with a proof), mcmc or exhaustive."""
    time_limit_s: float = 60.0
    """The best plan so far is taken after this time."""
    confirm: bool = False
    """Time the best candidates for some steps, and take the fastest."""
    candidates: int = 3
    """With confirm: how many of the best predicted plans are timed."""
    confirm_steps: int = 5
    """With confirm: timed steps of each candidate."""
    seed: int = 0
    """Seed of mcmc."""
    plans: str = ".cache/parallel/plans"
    """Folder of found plans; they are used again while model, batch and cluster are the same."""

    def __post_init__(self) -> None:
        require_one_of("strategy.method", self.method, SEARCHES)
        require(self.time_limit_s > 0, "strategy.time_limit_s", self.time_limit_s, "must be positive")
        for name in ("candidates", "confirm_steps"):
            require(getattr(self, name) >= 1, f"strategy.{name}", getattr(self, name), "must be at least 1")
