"""The boxes of all workers of a layout at once.

A layout is a grid, and every op's rule treats the dims apart: a box of its output or of an input has its span 0 by the
part's index in n, 1 by those in c and k, 2 by h, 3 by w. So the boxes of 1,024 workers are a few short lists of spans,
and each worker's place in them:

    box of part i = product over the tensor's dims d of span_d[index_d(i)]

Likewise the parts of an op have few different sizes, and those of equal size cost the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from parallel.box import Box, Span, cut
from parallel.ops import Op, Part
from parallel.plan import Layout


@dataclass(frozen=True, eq=False)
class Spans:
    """Boxes of one tensor, one for each worker of a layout."""

    on: np.ndarray
    """Workers [p]."""
    starts: tuple[np.ndarray, ...]
    """Per tensor dim, the first positions of its spans."""
    stops: tuple[np.ndarray, ...]
    index: tuple[np.ndarray, ...]
    """Per tensor dim, which of its spans each worker has [p]."""
    copies: int
    """How many workers have the same place in all dims: those of partial sums."""


def _grid(layout: Layout) -> tuple[np.ndarray, ...]:
    """Index of every part along n, c, k, h, w."""
    return np.unravel_index(np.arange(len(layout.on)), layout.degrees)


def held_spans(op: Op, layout: Layout, samples: int) -> Spans:
    """What the workers have of the op's output for a micro-batch of `samples`."""
    return _spans(layout, samples, _inner(op, layout.degrees[1:], None))


def needed_spans(op: Op, layout: Layout, which: int, samples: int) -> Spans:
    """What the workers need of the op's input `which`."""
    return _spans(layout, samples, _inner(op, layout.degrees[1:], which))


def _spans(layout: Layout, samples: int, inner: tuple[tuple[Span, ...] | None, ...]) -> Spans:
    n, c, k, h, w = _grid(layout)
    groups = [(cut(samples, layout.n, i) for i in range(layout.n)) if inner[0] is None else inner[0], *inner[1:]]
    ends = [np.array(list(group), dtype=np.int64) for group in groups if group is not None]
    index = (n if inner[0] is None else np.zeros_like(n), c * layout.k + k, h, w)[: len(ends)]
    return Spans(np.array(layout.on), tuple(e[:, 0] for e in ends), tuple(e[:, 1] for e in ends), index,
                 len(layout.on) // math.prod(map(len, ends)))


@lru_cache(maxsize=4096)
def _inner(op: Op, degrees: tuple[int, ...], which: int | None) -> tuple[tuple[Span, ...] | None, ...]:
    """Per dim of the output (`which` None) or of an input, its spans as that dim's part index goes, the others being
    0. None for the samples' dim, whose spans are those of the samples; unless it is one span for all."""
    c, k, h, w = degrees

    def box(index: tuple[int, ...]) -> Box:
        part = part_at(op, degrees, 2, index)
        return op.output_box(part) if which is None else op.needs(part)[which]

    first = box((0, 0, 0, 0)).spans
    groups = [[(i, j, 0, 0) for i in range(c) for j in range(k)],
              [(0, 0, i, 0) for i in range(h)], [(0, 0, 0, i) for i in range(w)]]
    spans = [tuple(box(index).spans[d] for index in group) for d, group in enumerate(groups[: len(first) - 1], start=1)]
    return None if first[0] == (0, 2) else first[:1], *spans


def part_at(op: Op, degrees: Sequence[int], samples: int, index: Sequence[int]) -> Part:
    """The part with these indices along c, k, h, w, for `samples` samples."""
    degree, at = dict(zip("ckhw", degrees, strict=True)), dict(zip("ckhw", index, strict=True))
    spans = [cut(size, degree[dim], at[dim]) for dim, size in zip("chw", op.domain, strict=False)]
    return Part(Box(((0, samples), *spans)), cut(op.extent("k"), degree["k"], at["k"]) if degree["k"] > 1 else None)


@dataclass(frozen=True, eq=False)
class PartKinds:
    """The parts of an op, those of equal size taken together."""

    parts: tuple[Part, ...]
    """One of each kind."""
    of: np.ndarray
    """Which kind each worker's is [p]."""


def part_kinds(op: Op, layout: Layout, rows: Sequence[int]) -> PartKinds:
    """The kinds of parts of `layout`, when the parts with index i in n have `rows[i]` samples."""
    n, c, k, h, w = _grid(layout)
    degrees = layout.degrees[1:]
    sizes = sorted(set(rows))
    kind_n = np.array([sizes.index(count) for count in rows])
    firsts, kinds = zip(*_inner_kinds(op, degrees), strict=True)
    of = np.stack([kind_n[n], kinds[0][c * layout.k + k], kinds[1][h], kinds[2][w]])
    shape = (len(sizes), *map(len, firsts))
    parts = tuple(
        part_at(op, degrees, count, (ck[0], ck[1], at_h[2], at_w[3]))
        for count, ck, at_h, at_w in itertools.product(sizes, *firsts)
    )
    return PartKinds(parts, np.ravel_multi_index(tuple(of), shape))


@lru_cache(maxsize=4096)
def _inner_kinds(op: Op, degrees: tuple[int, ...]) -> tuple[tuple[tuple[tuple[int, ...], ...], np.ndarray], ...]:
    """For (c, k), for h and for w: an index of each kind of part, and the kind of each index."""
    c, k, h, w = degrees

    def kinds(group: Iterator[tuple[int, ...]]) -> tuple[tuple[tuple[int, ...], ...], np.ndarray]:
        found: dict[object, int] = {}
        firsts: list[tuple[int, ...]] = []
        of: list[int] = []
        for index in group:
            part = part_at(op, degrees, 1, index)
            span = part.k or (0, 0)
            sizes = (part.box.shape, span[1] - span[0], tuple(box.shape for box in op.needs(part)),
                     tuple((name, box.shape) for name, box in op.parameter_boxes(part).items()),
                     index[2] in (0, h - 1), index[3] in (0, w - 1), op.multiply_adds(part))
            if sizes not in found:
                found[sizes] = len(firsts)
                firsts.append(index)
            of.append(found[sizes])
        return tuple(firsts), np.array(of)

    return (kinds((i, j, 0, 0) for i in range(c) for j in range(k)), kinds((0, 0, i, 0) for i in range(h)),
            kinds((0, 0, 0, i) for i in range(w)))
