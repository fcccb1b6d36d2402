"""Layouts: how one op is cut into parts, and which worker holds each part.

Parts are numbered row-major over the dims n, c, k, h, w; part i lies on worker `on[i]`. A dim is cut
into a number of equal parts, its degree, or by weights, one for each part: [3, 1] gives the first
part three quarters. The text form of a layout is `n2 c2 @0,1,2,3`, with weights `n3:1 @0,1`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from parallel.config import require
from parallel.config.checks import MOST_WORKERS
from parallel.graph.box import Box, Cut, Span, cut, degree, joined, leaves_none_empty, normal
from parallel.graph.ops import DIMS, Op, Part

MOST_WEIGHT = 10**6
"""Largest weight of a part."""


@dataclass(frozen=True)
class Layout:
    """A cut of each dim, a degree or weights, and the worker of each part.

    Weights are divided by their common divisor, and equal weights become a degree, so that equal
    layouts compare equal.
    """

    on: tuple[int, ...]
    n: Cut = 1
    c: Cut = 1
    k: Cut = 1
    h: Cut = 1
    w: Cut = 1

    def __post_init__(self) -> None:
        for dim in DIMS:
            _check_cut(dim, getattr(self, dim))
            if isinstance(getattr(self, dim), tuple):
                object.__setattr__(self, dim, normal(getattr(self, dim)))
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
    def cuts(self) -> tuple[Cut, ...]:
        """Cuts of n, c, k, h, w."""
        return tuple(getattr(self, dim) for dim in DIMS)

    @cached_property
    def degrees(self) -> tuple[int, ...]:
        """Numbers of parts in n, c, k, h, w."""
        return tuple(map(degree, self.cuts))

    @property
    def weighted(self) -> bool:
        """Whether any dim is cut by weights."""
        return any(isinstance(by, tuple) for by in self.cuts)

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
        return Part(Box(tuple(spans)), cut(op.extent("k"), self.k, index["k"]) if self.k != 1 else None)

    @property
    def parameter_holders(self) -> int:
        """Number of workers that hold the same box of a parameter and sum its gradient."""
        n, _, _, h, w = self.degrees
        return n * h * w

    def samples_by_index(self, samples: int) -> tuple[int, ...]:
        """Return the samples of a part by its index along n, for a batch of `samples`."""
        return samples_by_index(samples, self.n)

    def terms(self, op: Op) -> int:
        """Return the number of partial sums that add up to each element of the output."""
        return math.prod(degree(getattr(self, dim)) for dim in op.sums_over)

    def __str__(self) -> str:
        cuts = [f"{dim}{_text(by)}" for dim, by in zip(DIMS, self.cuts, strict=True) if by != 1]
        return " ".join([*cuts, "@" + ",".join(map(str, self.on))])


def _check_cut(dim: str, by: Cut) -> None:
    if not isinstance(by, tuple):
        require(
            1 <= by <= MOST_WORKERS, dim, by, f"must be a degree of at least 1 and at most {MOST_WORKERS:,}"
        )
        return
    require(
        1 <= len(by) <= MOST_WORKERS,
        dim,
        list(by),
        f"must list at least 1 and at most {MOST_WORKERS:,} weights",
    )
    for weight in by:
        require(
            1 <= weight <= MOST_WEIGHT,
            dim,
            list(by),
            f"must list weights of at least 1 and at most {MOST_WEIGHT:,}",
        )


def _text(by: Cut) -> str:
    return ":".join(map(str, by)) if isinstance(by, tuple) else str(by)


def samples_by_index(samples: int, by: Cut) -> tuple[int, ...]:
    """Return the sizes of the parts when samples are cut."""
    return tuple(stop - start for start, stop in (cut(samples, by, i) for i in range(degree(by))))


def follow(op: Op, layout: Layout) -> Layout:
    """Return the layout of an op that follows a producer with `layout`.

    It has the same workers and, if possible, the same parts. If the op cannot be split in a dim, or
    has too few positions in it, the degree multiplies that of c or, if this is not possible, that
    of n. So a k split becomes a c split of the reduced output, a split feature map becomes split
    features, and the loss is split in n alone. Weights stay with a dim, and are multiplied as degrees
    are (`box.joined`).
    """
    return Layout(layout.on, *follow_cuts(op, layout.cuts))


def follow_cuts(op: Op, producer: tuple[Cut, ...]) -> tuple[Cut, ...]:
    """Return the cuts of n, c, k, h, w of an op that follows a producer with these cuts."""
    cuts = dict(zip(DIMS, producer, strict=True))
    for dim in "khwc":
        fits = dim in op.dims and dim != "k" and leaves_none_empty(op.extent(dim), cuts[dim])
        if cuts[dim] != 1 and not fits:
            target = (
                "c"
                if dim != "c"
                and "c" in op.dims
                and leaves_none_empty(op.extent("c"), joined(cuts["c"], cuts[dim]))
                else "n"
            )
            cuts[target] = joined(cuts[target], cuts[dim])
            cuts[dim] = 1
    return tuple(cuts.values())


def check_layout(op: Op, layout: Layout, workers: int) -> None:
    """Raise `ValueError` unless `op` can be cut and placed as `layout` says."""
    where = f"ops.{op.name}"
    for worker in layout.on:
        require(worker < workers, f"{where}.on", list(layout.on), f"names a worker outside workers={workers}")
    for dim, by in zip(DIMS, layout.cuts, strict=True):
        if by == 1:
            continue
        value = list(by) if isinstance(by, tuple) else by
        require(
            dim in op.dims,
            f"{where}.{dim}",
            value,
            f"splits a dim that {type(op).__name__} cannot be split in; it has {', '.join(op.dims)}",
        )
        if dim == "n":
            continue
        require(
            degree(by) <= op.extent(dim),
            f"{where}.{dim}",
            value,
            f"is more parts than the dim has positions, {op.extent(dim)}",
        )
        require(
            leaves_none_empty(op.extent(dim), by),
            f"{where}.{dim}",
            value,
            f"leaves a part of the dim's {op.extent(dim)} positions empty",
        )
