"""Plans as text: runs of consecutive ops that share a layout."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from parallel.plans.layout import Layout
from parallel.plans.plan import Plan


def span_of(names: Iterable[str]) -> str:
    """Return the first and the last name as `first … last`."""
    listed = list(names)
    return listed[0] if len(listed) == 1 else f"{listed[0]} … {listed[-1]}"


def compact(plan: Plan) -> list[tuple[str, Layout]]:
    """Return the runs of consecutive ops with the same layout, as (names, layout)."""
    runs = groupby(plan.layouts.items(), key=lambda item: item[1])
    return [(span_of(name for name, _ in items), layout) for layout, items in runs]
