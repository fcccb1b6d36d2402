"""Limits of a search method, and its result."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from parallel.search.objective import Score

Chosen = Mapping[str, int]
"""A plan of a space: the candidate of every decided op."""
UNKNOWN = Score(math.inf, math.inf)


@dataclass(frozen=True)
class Limits:
    """What ends or bounds a search, and where progress goes."""

    known: Score = UNKNOWN
    """Score of a known plan; only better ones count."""
    memory_bytes: int | None = None
    """Memory of a worker, summed over ops (`cost_table.plan_memory`)."""
    stop: Callable[[], str | None] = lambda: None
    """Returns a reason to end early, or None."""
    progress: Callable[[Score, Score, int], None] = lambda best, bound, looked_at: None
    """Receives the best plan's score, the bound, and the number of labels, plans or proposals."""


@dataclass(frozen=True)
class Result:
    """The best plan of a space that a method found."""

    chosen: Chosen | None
    """None: no plan fits the memory, or none is better than the known one."""
    score: Score
    bound: Score
    """No plan of the space is better."""
    looked_at: int
    """Labels, plans or proposals."""
    stopped: str | None
    """Why it ended early; None: it did not."""
