"""Sums over the spans of a cut dim, against sums over all pairs of spans."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.graph.box import Span
from parallel.simulator.partition import Cuts

SIZE = 12
POSITION = st.integers(0, SIZE)


@st.composite
def ways(draw: st.DrawFn) -> list[list[Span]]:
    """Return some lists of spans, none inside another one with room on both sides, some empty or equal."""
    found = []
    for count in draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)):
        starts, stops = (sorted(draw(st.lists(POSITION, min_size=count, max_size=count))) for _ in range(2))
        found.append([(start, max(start, stop)) for start, stop in zip(starts, stops, strict=True)])
    return found


@settings(max_examples=60, deadline=None)
@given(lists=ways())
def test_sums_are_those_over_all_spans(lists: list[list[Span]]) -> None:
    cuts = Cuts.by(np.arange(len(lists))[:, None], lambda way: lists[way])
    for (way, spans), start in itertools.product(enumerate(lists), range(SIZE + 2)):
        for stop in range(start, SIZE + 3):
            common = [max(0, min(stop, last) - max(start, first)) for first, last in spans]
            query = np.array(way), np.full((1, 1), float(start)), np.full((1, 1), float(stop))
            assert cuts.common(*query) == sum(common)
            assert cuts.containing(*query) == sum(each for each in common if each == stop - start)
