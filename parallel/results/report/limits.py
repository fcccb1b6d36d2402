"""How much a page shows in detail, so that a thousand records make a page of at most 2 MB.

Tables list every result. Plots, plans and timelines are drawn for the first of them, and a sentence
says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from parallel.results.result import Result

Item = TypeVar("Item")

MOST_LANES = 30
"""Results in a chart with one lane per result."""
MOST_CURVES = 12
"""Results in a plot with one curve per result."""
MOST_SECTIONS = 12
"""Workloads with a section of their own; the others are lines of the overview."""
PAGE = {"plans": 24, "timelines": 12, "commands": 60, "runs": 60}
"""Plans, timelines, commands and runs with all their facts, in the whole page."""


class Allowance:
    """What is left of `PAGE` while a page is made: its sections take from it in their order."""

    def __init__(self) -> None:
        self._left = dict(PAGE)

    def take(self, what: str, wanted: Sequence[Item]) -> tuple[Sequence[Item], str]:
        """Return the first items that may still be shown, and a sentence if not all may."""
        taken = wanted[: self._left[what]]
        self._left[what] -= len(taken)
        return taken, not_all(len(taken), len(wanted), what)


def drawn(results: Sequence[Result], most: int) -> tuple[list[Result], str]:
    """Return the results that a plot shows, in their order, and a sentence if it leaves some out.

    They are the baselines and then the fastest, without that the first `most`.
    """
    if len(results) <= most:
        return list(results), ""
    order = sorted(results, key=lambda result: (result.role == "", result.epoch_s.median))
    kept = {result.key for result in order[:most]}
    shown = [result for result in results if result.key in kept]
    return shown, f"{not_all(most, len(results), 'results')} The baselines and the fastest are drawn."


def not_all(shown: int, of: int, what: str) -> str:
    """Return a sentence that says how many are shown; empty if all are."""
    return (
        "" if shown == of else f"{shown:,} of {of:,} {what} are shown; compare fewer runs to see the others."
    )
