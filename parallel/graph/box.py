"""Boxes: half-open hyper-rectangles of a tensor, the common mechanism of all splits.

A worker holds one box of a tensor and needs another; it receives intersections of its needed box
with the boxes that other workers hold.
"""

from __future__ import annotations

from dataclasses import dataclass

Span = tuple[int, int]


def cut(size: int, degree: int, index: int) -> Span:
    """Return the span of part `index` when `size` positions are cut into `degree` parts of nearly
    equal size.

    Sizes differ by at most one.
    """
    return size * index // degree, size * (index + 1) // degree


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
