"""Options of `strategy=searched`: the fastest plan that a search finds for a cluster
(docs/search.md)."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.config.checks import (
    MOST_SECONDS,
    MOST_STEPS,
    SEEDS,
    require_number,
    require_one_of,
    require_positive,
)
from parallel.config.strategy import StrategyConfig

SEARCHES = ("exact", "mcmc", "exhaustive")


@dataclass(frozen=True)
class Searched(StrategyConfig):
    """The search, the timing of its candidates, and the folder of found plans."""

    name: str = "searched"
    method: str = "exact"
    """Search method: exact (with a proof), mcmc or exhaustive."""
    time_limit_s: float = 60.0
    """Time limit of the search in seconds; it then returns the best plan so far."""
    confirm: bool = False
    """Whether to run the best candidates for some steps and use the fastest."""
    candidates: int = 3
    """With confirm: number of candidates."""
    confirm_steps: int = 5
    """With confirm: timed steps of each candidate."""
    seed: int = 0
    """Seed of mcmc."""
    plans: str = ".cache/parallel/plans"
    """Folder of found plans. A plan is reused for the same model, batch, cluster and search."""

    def __post_init__(self) -> None:
        require_one_of("strategy.method", self.method, SEARCHES)
        require_positive("strategy.time_limit_s", self.time_limit_s, MOST_SECONDS)
        for name in ("candidates", "confirm_steps"):
            require_number(f"strategy.{name}", getattr(self, name), 1, MOST_STEPS)
        require_number("strategy.seed", self.seed, 0, SEEDS - 1)
