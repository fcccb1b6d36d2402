"""Boxes: half-open hyper-rectangles of a tensor, the common mechanism of all splits.

A worker holds one box of a tensor and needs another; it receives intersections of its needed box
with the boxes that other workers hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

Span = tuple[int, int]


Cut = int | tuple[int, ...]
"""How positions are cut: into this number of parts of nearly equal size, or by the weights of the
parts."""


def cut(size: int, by: Cut, index: int) -> Span:
    """Return the span of part `index` when `size` positions are cut.

    The sizes of equal parts differ by at most one; those of weighted parts from their shares of
    `size` by less than one.
    """
    if isinstance(by, tuple):
        before, total = sum(by[:index]), sum(by)
        return size * before // total, size * (before + by[index]) // total
    return size * index // by, size * (index + 1) // by


def degree(by: Cut) -> int:
    """Return the number of parts."""
    return len(by) if isinstance(by, tuple) else by


def leaves_none_empty(size: int, by: Cut) -> bool:
    """Return whether every part of `size` positions has at least one."""
    if isinstance(by, tuple):
        return all(start < stop for start, stop in (cut(size, by, i) for i in range(len(by))))
    return by <= size


def normal(by: Cut) -> Cut:
    """Return the cut in its only form: weights without a common divisor, equal ones as a number."""
    if not isinstance(by, tuple):
        return by
    if len(set(by)) == 1:
        return len(by)
    divisor = math.gcd(*by)
    return tuple(weight // divisor for weight in by)


def joined(outer: Cut, inner: Cut) -> Cut:
    """Return the cut into the parts of `inner` of every part of `outer`, row-major.

    The weight of a part is the product of the two.
    """
    if not isinstance(outer, tuple) and not isinstance(inner, tuple):
        return outer * inner
    weights = [by if isinstance(by, tuple) else (1,) * by for by in (outer, inner)]
    return normal(tuple(a * b for a in weights[0] for b in weights[1]))


@dataclass(frozen=True)
class Box:
    """A half-open hyper-rectangle: one span per tensor dimension, outermost first."""

    spans: tuple[Span, ...]

    @staticmethod
    def whole(shape: tuple[int, ...]) -> Box:
        """Return the box that covers a whole tensor of this shape."""
        return Box(tuple((0, size) for size in shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each span; negative where a span is reversed."""
        return tuple(stop - start for start, stop in self.spans)

    @property
    def volume(self) -> int:
        """Elements in the box; 0 when it is empty."""
        volume = 1  # a loop, not a generator: the cost model asks for millions of volumes
        for start, stop in self.spans:
            if stop <= start:
                return 0
            volume *= stop - start
        return volume

    @property
    def empty(self) -> bool:
        """Whether the box has no elements."""
        return any(stop <= start for start, stop in self.spans)

    def __and__(self, other: Box) -> Box:
        return Box(
            tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(self.spans, other.spans, strict=True))
        )

    def replace(self, dim: int, span: Span) -> Box:
        """Return this box with another span in dimension `dim`."""
        return Box((*self.spans[:dim], span, *self.spans[dim + 1 :]))

    def within(self, other: Box) -> tuple[slice, ...]:
        """Return the slices that select this box from a tensor with the box `other`."""
        return tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(self.spans, other.spans, strict=True))

    def __str__(self) -> str:
        return "[" + ", ".join(f"{start}:{stop}" for start, stop in self.spans) + "]"
