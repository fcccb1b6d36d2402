"""Pieces: a worker's parts of the tensors of the training state.

A worker holds a span of a bucket, and so of a box of each parameter in it, in memory order. A piece
says which tensor, which box of it, and which elements of the box, so that the tensor can be put
together without the plan.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from parallel.config import require, require_one_of
from parallel.config.documents import from_json
from parallel.config.typed import structure
from parallel.graph.box import Box, Span
from parallel.graph.memory_order import in_logical_order, memory_shape

KINDS = ("weights", "momentum", "buffers", "gradients")
"""Kinds of tensors. Gradients are in no checkpoint: verification compares them."""
ReadTensor = Callable[[str, str], Tensor]
"""(kind, name) → the whole tensor, on the CPU."""


@dataclass(frozen=True)
class Place:
    """The place of a piece in the training state."""

    kind: str
    """One of KINDS."""
    name: str
    """Name in the model's `state_dict`."""
    shape: tuple[int, ...]
    """Shape of the whole tensor."""
    box: tuple[tuple[int, ...], ...]
    """Spans of the box that the piece belongs to."""
    channels_last: bool
    """Whether the elements of the box lie as [n, h, w, c]."""
    start: int
    """First element of the piece, counted in the box in memory order."""
    stop: int

    def __post_init__(self) -> None:
        require_one_of("kind", self.kind, KINDS)
        inside = len(self.box) == len(self.shape) and all(
            len(span) == 2 and 0 <= span[0] < span[1] <= size
            for span, size in zip(self.box, self.shape, strict=False)
        )
        require(inside, "box", self.box, f"must be a box in a tensor of shape {self.shape}")
        require(
            0 <= self.start < self.stop <= self.whole_box.volume,
            "start:stop",
            f"{self.start}:{self.stop}",
            f"must be a span of the {self.whole_box.volume} elements of the box",
        )

    @property
    def whole_box(self) -> Box:
        """The box as `Box`."""
        return Box(tuple((span[0], span[1]) for span in self.box))

    @property
    def key(self) -> str:
        """Name of the piece in its file: `weights/fc6.weight [0:10, 0:20] 0:200`."""
        return f"{self.kind}/{self.name} {self.whole_box} {self.start}:{self.stop}"


@dataclass(frozen=True)
class Piece:
    """A place and its elements."""

    place: Place
    values: Tensor
    """[stop − start]"""


def pieces_of_span(
    kind: str,
    tensors: Sequence[tuple[str, tuple[int, ...], Box]],
    offsets: Sequence[int],
    span: Span,
    values: Tensor,
    channels_last: bool,
) -> Iterator[Piece]:
    """Yield the pieces of a span of a bucket.

    The bucket holds the boxes of `tensors` (name, whole shape, box), each in memory order from its
    offset on, perhaps with padding between and behind them; `values` are the elements of `span` in it.
    """
    for (name, shape, box), begin in zip(tensors, offsets, strict=True):
        start, stop = max(begin, span[0]), min(begin + box.volume, span[1])
        if start < stop:
            place = Place(kind, name, shape, box.spans, channels_last, start - begin, stop - begin)
            yield Piece(place, values[start - span[0] : stop - span[0]])


def assembled(pieces: Iterable[Piece]) -> Tensor:
    """Return the tensor that all its pieces make up, in any order.

    Raises `ValueError` if an element is missing, given twice or of another dtype.
    """
    by_box: dict[Box, list[Piece]] = {}
    for piece in pieces:
        by_box.setdefault(piece.place.whole_box, []).append(piece)
    some = next(iter(by_box.values()))[0]
    shape, dtype = some.place.shape, some.values.dtype
    for box, parts in by_box.items():
        _check_box(parts, box, some)
    # Before memory is allocated for a shape that may be damaged.
    covered, volume = sum(box.volume for box in by_box), Box.whole(shape).volume
    if covered != volume:
        raise ValueError(f"{some.place.name} has pieces of {covered} of its {volume} elements")
    for one, other in combinations(by_box, 2):
        if not (one & other).empty:
            raise ValueError(f"{some.place.name} has the overlapping pieces {one} and {other}")
    whole = torch.empty(shape, dtype=dtype)
    for box, parts in by_box.items():
        flat = torch.cat([part.values for part in parts])
        channels_last = parts[0].place.channels_last
        shaped = flat.view(memory_shape(box.shape, channels_last))
        whole[box.within(Box.whole(shape))] = in_logical_order(shaped, channels_last)
    return whole


def _check_box(parts: list[Piece], box: Box, some: Piece) -> None:
    """Sort the parts of a box. Raises `ValueError` unless they follow each other and are of the
    same tensor as `some`."""
    parts.sort(key=lambda part: part.place.start)
    end = 0
    for part in parts:
        place = part.place
        if place.shape != some.place.shape or part.values.dtype != some.values.dtype:
            raise ValueError(f"{place.name} has pieces of different shapes or dtypes")
        if place.channels_last != parts[0].place.channels_last:
            raise ValueError(f"{place.name} {box} has pieces in different memory orders")
        if place.start != end:
            missing = place.start > end
            first, last = sorted((place.start, end))
            raise ValueError(
                f"{place.name} {box} {'lacks' if missing else 'repeats'} its elements {first}:{last}"
            )
        end = place.stop
    if end < box.volume:
        raise ValueError(f"{some.place.name} {box} lacks its elements {end}:{box.volume}")


def to_header(places: Iterable[Place]) -> str:
    """Return places as text for the header of a file."""
    return json.dumps([vars(place) for place in places])


def from_header(header: Mapping[str, str] | None) -> tuple[Place, ...]:
    """Return the places in the header of a file. Raises `ValueError` for an invalid one."""
    text = (header or {}).get("pieces")
    require(text is not None, "pieces", None, "is missing from the file's header")
    return structure(tuple[Place, ...], from_json((text or "").encode()), "pieces")
