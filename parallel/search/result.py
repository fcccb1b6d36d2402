"""What a method found in a space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from parallel.search.objective import Score


@dataclass(frozen=True)
class Result:
    """The best plan of a space, as far as a method came."""

    chosen: Mapping[str, int] | None
    """Candidates by decided op. None: no plan fits the memory, or none is better than what was known."""
    score: Score
    bound: Score
    """No plan of the space is better."""
    looked_at: int
    """Labels, plans or proposals."""
    stopped: str | None
    """Why it ended early; None: it did not."""
