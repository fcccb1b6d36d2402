"""Layouts: how one op is cut into parts, and which worker holds each part.

Parts are numbered row-major over the dims n, c, k, h, w; part i lies on worker `on[i]`. The text
form of a layout is `n2 c2 @0,1,2,3`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from parallel.config import require
from parallel.config.checks import MOST_WORKERS
from parallel.graph.box import Box, Span, cut
from parallel.graph.ops import DIMS, Op, Part


@dataclass(frozen=True)
class Layout:
    """A degree for each dim, and the worker of each part."""

    on: tuple[int, ...]
    n: int = 1
    c: int = 1
    k: int = 1
    h: int = 1
    w: int = 1

    def __post_init__(self) -> None:
        for dim in DIMS:
            require(
                1 <= getattr(self, dim) <= MOST_WORKERS,
                dim,
                getattr(self, dim),
                f"must be a degree of at least 1 and at most {MOST_WORKERS:,}",
            )
        require(
            math.prod(self.degrees) == len(self.on),
            "on",
            list(self.on),
            f"must name as many workers as there are parts, {math.prod(self.degrees)}",
        )
        require(len(set(self.on)) == len(self.on), "on", list(self.on), "must not name a worker twice")
        require(
            all(0 <= worker < MOST_WORKERS for worker in self.on),
            "on",
            list(self.on),
            f"must name workers from 0 and below {MOST_WORKERS:,}",
        )

    @cached_property
    def degrees(self) -> tuple[int, ...]:
        """Degrees in n, c, k, h, w."""
        return tuple(getattr(self, dim) for dim in DIMS)

    @cached_property
    def _indices(self) -> dict[int, dict[str, int]]:
        """Index along each dim by worker, computed together: there may be a thousand workers."""
        spaces = itertools.product(*map(range, self.degrees))
        return {
            worker: dict(zip(DIMS, index, strict=True)) for worker, index in zip(self.on, spaces, strict=True)
        }

    def index(self, worker: int) -> Mapping[str, int]:
        """Return the index along each dim of the part on `worker`."""
        return self._indices[worker]

    def part(self, op: Op, worker: int, samples: Span) -> Part:
        """Return the part of `op` on `worker` for the span `samples` of the global batch."""
        index = self.index(worker)
        start, stop = cut(samples[1] - samples[0], self.n, index["n"])
        spans = [(samples[0] + start, samples[0] + stop)]
        for dim, size in zip("chw", op.domain, strict=False):
            spans.append(cut(size, getattr(self, dim), index[dim]))
        return Part(Box(tuple(spans)), cut(op.extent("k"), self.k, index["k"]) if self.k > 1 else None)

    @property
    def parameter_holders(self) -> int:
        """Number of workers that hold the same box of a parameter and sum its gradient."""
        return self.n * self.h * self.w

    def samples_by_index(self, samples: int) -> tuple[int, ...]:
        """Return the samples of a part by its index along n, for a batch of `samples`."""
        return tuple(stop - start for start, stop in (cut(samples, self.n, i) for i in range(self.n)))

    def terms(self, op: Op) -> int:
        """Return the number of partial sums that add up to each element of the output."""
        return math.prod(getattr(self, dim) for dim in op.sums_over)

    def __str__(self) -> str:
        cuts = [f"{dim}{degree}" for dim, degree in zip(DIMS, self.degrees, strict=True) if degree > 1]
        return " ".join([*cuts, "@" + ",".join(map(str, self.on))])


def follow(op: Op, layout: Layout) -> Layout:
    """Return the layout of an op that follows a producer with `layout`.

    It has the same workers and, if possible, the same parts. If the op cannot be split in a dim, or
    has too few positions in it, the degree multiplies that of c or, if this is not possible, that
    of n. So a k split becomes a c split of the reduced output, a split feature map becomes split
    features, and the loss is split in n alone.
    """
    return Layout(layout.on, *follow_degrees(op, layout.degrees))


def follow_degrees(op: Op, producer: tuple[int, ...]) -> tuple[int, ...]:
    """Return the degrees in n, c, k, h, w of an op that follows a producer with these degrees."""
    degrees = dict(zip(DIMS, producer, strict=True))
    for dim in "khwc":
        fits = dim in op.dims and dim != "k" and degrees[dim] <= op.extent(dim)
        if degrees[dim] > 1 and not fits:
            target = (
                "c"
                if dim != "c" and "c" in op.dims and degrees["c"] * degrees[dim] <= op.extent("c")
                else "n"
            )
            degrees[target] *= degrees[dim]
            degrees[dim] = 1
    return tuple(degrees.values())


def check_layout(op: Op, layout: Layout, workers: int) -> None:
    """Raise `ValueError` unless `op` can be cut and placed as `layout` says."""
    where = f"ops.{op.name}"
    for worker in layout.on:
        require(worker < workers, f"{where}.on", list(layout.on), f"names a worker outside workers={workers}")
    for dim, degree in zip(DIMS, layout.degrees, strict=True):
        if degree == 1:
            continue
        require(
            dim in op.dims,
            f"{where}.{dim}",
            degree,
            f"splits a dim that {type(op).__name__} cannot be split in; it has {', '.join(op.dims)}",
        )
        if dim != "n":
            require(
                degree <= op.extent(dim),
                f"{where}.{dim}",
                degree,
                f"is more parts than the dim has positions, {op.extent(dim)}",
            )
