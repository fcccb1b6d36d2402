"""Boxes: cuts and intersections, compared with computing them position by position."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parallel.graph.box import Box, cut, joined, leaves_none_empty, normal

spans = st.tuples(st.integers(0, 6), st.integers(0, 6))


def positions(box: Box) -> set[tuple[int, ...]]:
    return set(itertools.product(*(range(start, stop) for start, stop in box.spans)))


@given(st.integers(1, 200), st.data())
def test_cut_tiles_exactly(size: int, data: st.DataObject) -> None:
    degree = data.draw(st.integers(1, size))
    parts = [cut(size, degree, i) for i in range(degree)]
    assert [position for part in parts for position in range(*part)] == list(range(size))
    sizes = [stop - start for start, stop in parts]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 200), st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_weights_tile_in_proportion(size: int, listed: list[int]) -> None:
    weights = tuple(listed)
    parts = [cut(size, weights, i) for i in range(len(weights))]
    assert [position for part in parts for position in range(*part)] == list(range(size))
    for (start, stop), weight in zip(parts, weights, strict=True):
        assert abs((stop - start) - size * weight / sum(weights)) < 1
    assert leaves_none_empty(size, weights) == all(start < stop for start, stop in parts)
    assert parts == [cut(size, normal(weights), i) for i in range(len(weights))]


def test_weights_have_one_form() -> None:
    assert normal((6, 2)) == (3, 1)
    assert normal((5, 5, 5)) == 3
    assert normal((7,)) == 1
    assert [cut(128, (85, 43), i) for i in range(2)] == [(0, 85), (85, 128)]
    assert joined(2, 3) == 6
    assert joined((2, 1), 2) == (2, 2, 1, 1)
    assert joined((3, 1), (1, 2)) == (3, 6, 1, 2)


@given(st.lists(st.tuples(spans, spans), min_size=1, max_size=3))
def test_intersection_is_that_of_the_sets_of_positions(
    pairs: list[tuple[tuple[int, int], tuple[int, int]]],
) -> None:
    one, other = Box(tuple(a for a, _ in pairs)), Box(tuple(b for _, b in pairs))
    both = one & other
    assert positions(both) == positions(one) & positions(other)
    assert both == other & one
    assert both.volume == len(positions(both))
    assert both.empty == (not positions(both))


def test_boxes_of_different_dimensions_do_not_mix() -> None:
    with pytest.raises(ValueError, match="zip"):
        Box.whole((2, 3)) & Box.whole((2, 3, 4))


def test_within_finds_the_same_elements() -> None:
    tensor = torch.arange(4 * 5 * 6).reshape(4, 5, 6)
    outer = Box(((1, 4), (0, 5), (2, 6)))
    inner = Box(((2, 3), (1, 4), (3, 6)))
    held = tensor[outer.within(Box.whole((4, 5, 6)))]
    assert torch.equal(held[inner.within(outer)], tensor[2:3, 1:4, 3:6])
    assert held.shape == outer.shape


def test_whole_replace_and_text() -> None:
    box = Box.whole((8, 3, 5))
    assert (box.volume, box.empty, box.shape) == (120, False, (8, 3, 5))
    assert box.replace(1, (1, 2)) == Box(((0, 8), (1, 2), (0, 5)))
    assert box.replace(0, (2, 2)).empty
    assert str(box.replace(2, (4, 5))) == "[0:8, 0:3, 4:5]"
