"""Pieces of tensors: they make up whole tensors, and what does not fit is refused."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from parallel.checkpoints.piece import Piece, Place, assembled, from_header, pieces_of_span, to_header
from parallel.graph.box import Box, cut
from parallel.graph.memory_order import in_memory_order


def tiles(draw: st.DrawFn, box: Box) -> list[Box]:
    """Draw boxes that tile `box`: it is cut at a random position of a random dim, again and again."""
    whole = [box]
    for _ in range(draw(st.integers(0, 4))):
        chosen = draw(st.integers(0, len(whole) - 1))
        long = [dim for dim, length in enumerate(whole[chosen].shape) if length > 1]
        if long:
            dim = draw(st.sampled_from(long))
            parent = whole.pop(chosen)
            start, stop = parent.spans[dim]
            middle = draw(st.integers(start + 1, stop - 1))
            whole += [parent.replace(dim, (start, middle)), parent.replace(dim, (middle, stop))]
    return whole


@st.composite
def split_tensors(draw: st.DrawFn) -> tuple[dict[str, Tensor], list[Piece]]:
    """Draw tensors, and pieces of them as workers hold them: buckets of boxes, cut into shards."""
    tensors, boxes = {}, []
    for number in range(draw(st.integers(1, 3))):
        shape = tuple(draw(st.lists(st.integers(1, 5), max_size=4)))
        dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
        name = f"op{number}.weight"
        generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        tensors[name] = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        boxes += [(name, shape, box) for box in tiles(draw, Box.whole(shape))]
    pieces = []
    for dtype in {tensor.dtype for tensor in tensors.values()}:
        same = draw(st.permutations([entry for entry in boxes if tensors[entry[0]].dtype == dtype]))
        channels_last = draw(st.booleans())
        parts = [
            in_memory_order(tensors[name][box.within(Box.whole(shape))], channels_last).reshape(-1)
            for name, shape, box in same
        ]
        gaps = [torch.full((draw(st.integers(0, 3)),), float("nan"), dtype=dtype) for _ in parts]
        padded = [torch.cat([part, gap]) for part, gap in zip(parts, gaps, strict=True)]
        offsets = list(itertools.accumulate(map(len, padded[:-1]), initial=0))
        flat = torch.cat(padded)
        shards = draw(st.integers(1, 4))
        for shard in range(shards):
            span = cut(len(flat), shards, shard)
            pieces += pieces_of_span("weights", same, offsets, span, flat[slice(*span)], channels_last)
    return tensors, draw(st.permutations(pieces))


def of(pieces: Sequence[Piece], name: str) -> list[Piece]:
    return [piece for piece in pieces if piece.place.name == name]


@given(split_tensors())
def test_pieces_make_up_the_tensor(split: tuple[dict[str, Tensor], list[Piece]]) -> None:
    tensors, pieces = split
    for name, tensor in tensors.items():
        again = assembled(of(pieces, name))
        assert again.dtype == tensor.dtype and torch.equal(again, tensor)
    places = [piece.place for piece in pieces]
    assert from_header({"pieces": to_header(places)}) == tuple(places)
    assert len({place.key for place in places}) == len(places)


@given(split_tensors(), st.data())
def test_a_missing_or_doubled_piece_is_refused(
    split: tuple[dict[str, Tensor], list[Piece]], data: st.DataObject
) -> None:
    _, pieces = split
    piece = data.draw(st.sampled_from(pieces))
    own = of(pieces, piece.place.name)
    if len(own) > 1:
        with pytest.raises(ValueError, match="lacks its elements|has pieces of|overlapping"):
            assembled([other for other in own if other is not piece])
    with pytest.raises(ValueError, match="repeats its elements"):
        assembled([*own, piece])


def piece(
    box: Sequence[tuple[int, int]],
    start: int = 0,
    stop: int | None = None,
    shape: tuple[int, ...] = (2, 4),
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Piece:
    spans = tuple(tuple(span) for span in box)
    end = Box(spans).volume if stop is None else stop  # type: ignore[arg-type]
    return Piece(
        Place("weights", "fc.weight", shape, spans, channels_last, start, end),
        torch.arange(start, end).to(dtype),
    )


@pytest.mark.parametrize(
    ("pieces", "sentence"),
    [
        ([piece([(0, 2), (0, 2)])], "fc.weight has pieces of 4 of its 8 elements"),
        (
            [piece([(0, 2), (0, 3)]), piece([(0, 2), (2, 3)])],
            r"fc.weight has the overlapping pieces \[0:2, 0:3\] and \[0:2, 2:3\]",
        ),
        (
            [piece([(0, 2), (0, 4)], 0, 3), piece([(0, 2), (0, 4)], 4, 8)],
            r"\[0:2, 0:4\] lacks its elements 3:4",
        ),
        (
            [piece([(0, 2), (0, 4)], 0, 5), piece([(0, 2), (0, 4)], 3, 8)],
            r"\[0:2, 0:4\] repeats its elements 3:5",
        ),
        ([piece([(0, 2), (0, 4)], 0, 5)], r"\[0:2, 0:4\] lacks its elements 5:8"),
        (
            [piece([(0, 2), (0, 2)]), piece([(0, 2), (2, 4)], dtype=torch.float64)],
            "different shapes or dtypes",
        ),
        ([piece([(0, 2), (0, 2)]), piece([(0, 2), (2, 4)], shape=(2, 5))], "different shapes or dtypes"),
        (
            [piece([(0, 2), (0, 4)], 0, 5), piece([(0, 2), (0, 4)], 5, 8, channels_last=True)],
            "different memory orders",
        ),
    ],
)
def test_pieces_that_do_not_fit(pieces: list[Piece], sentence: str) -> None:
    for order in (pieces, pieces[::-1]):
        with pytest.raises(ValueError) as caught:
            assembled(order)
    pytest.raises(ValueError, assembled, pieces).match(sentence)
    assert "\n" not in str(caught.value)


def test_a_huge_shape_allocates_nothing() -> None:
    part = piece([(0, 1), (0, 1)], shape=(10**12, 10**12))
    with pytest.raises(ValueError, match=f"has pieces of 1 of its {10**24} elements"):
        assembled([part])


PLACE = Place("weights", "conv1.weight", (4, 3), ((0, 2), (0, 3)), False, 1, 4)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"kind": "losses"},
            "kind=losses is not known; it must be one of weights, momentum, buffers, gradients",
        ),
        ({"box": ((0, 2),)}, r"box=\(\(0, 2\),\) must be a box in a tensor of shape \(4, 3\)"),
        ({"box": ((0, 5), (0, 3))}, "box=.* must be a box in a tensor"),
        ({"box": ((-1, 2), (0, 3))}, "box=.* must be a box in a tensor"),
        ({"box": ((2, 2), (0, 3))}, "box=.* must be a box in a tensor"),
        ({"box": ((0, 1, 2), (0, 3))}, "box=.* must be a box in a tensor"),
        ({"start": -1}, "start:stop=-1:4 must be a span of the 6 elements of the box"),
        ({"stop": 7}, "start:stop=1:7 must be a span of the 6 elements"),
        ({"start": 4}, "start:stop=4:4 must be a span"),
    ],
)
def test_rules_of_places(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        dataclasses.replace(PLACE, **changes)


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        (None, "pieces=None is missing from the file's header"),
        ({}, "pieces=None is missing from the file's header"),
        ({"pieces": "{}"}, r"pieces=\{\} must be a list"),
        ({"pieces": "[1]"}, r"pieces\[0\]=1 must be a mapping"),
        (
            {"pieces": to_header([PLACE]).replace("false", "0")},
            r"pieces\[0\].channels_last=0 must be true or false",
        ),
        (
            {"pieces": to_header([PLACE]).replace('"stop": 4', '"stop": 9')},
            r"pieces\[0\].start:stop=1:9 must be",
        ),
        (
            {"pieces": to_header([PLACE]).replace('"stop"', '"end"')},
            r"pieces\[0\] lacks stop and has unknown end",
        ),
        ({"pieces": "["}, "truncated or not JSON"),
    ],
)
def test_headers(header: dict[str, str] | None, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        from_header(header)
