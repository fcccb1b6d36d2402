"""Boxes: half-open hyper-rectangles of a tensor, the one mechanism behind every split.

A worker holds a box of a tensor and needs a box of another; what it must receive is an intersection.
"""

from __future__ import annotations

from dataclasses import dataclass

Span = tuple[int, int]


def cut(size: int, degree: int, index: int) -> Span:
    """Span of part `index` when `size` positions are cut into `degree` parts whose sizes differ by one at most."""
    return size * index // degree, size * (index + 1) // degree


@dataclass(frozen=True)
class Box:
    """A half-open span per dimension of a tensor, outermost dimension first."""

    spans: tuple[Span, ...]

    @staticmethod
    def whole(shape: tuple[int, ...]) -> Box:
        """The box of all of a tensor of this shape."""
        return Box(tuple((0, size) for size in shape))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(stop - start for start, stop in self.spans)

    @property
    def volume(self) -> int:
        """Elements in the box; 0 when it is empty."""
        volume = 1  # no generator: prices ask for millions
        for start, stop in self.spans:
            if stop <= start:
                return 0
            volume *= stop - start
        return volume

    @property
    def empty(self) -> bool:
        return any(stop <= start for start, stop in self.spans)

    def __and__(self, other: Box) -> Box:
        return Box(tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(self.spans, other.spans, strict=True)))

    def replace(self, dim: int, span: Span) -> Box:
        """The same box with another span in one dimension."""
        return Box((*self.spans[:dim], span, *self.spans[dim + 1 :]))

    def within(self, other: Box) -> tuple[slice, ...]:
        """Where this box lies in a tensor that holds the box `other`."""
        return tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(self.spans, other.spans, strict=True))

    def __str__(self) -> str:
        return "[" + ", ".join(f"{start}:{stop}" for start, stop in self.spans) + "]"
