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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from parallel.graph.box import Box, cut
from parallel.graph.ops import Op, Part


@dataclass(frozen=True, eq=False)
class Spans:
    """Boxes of one tensor, one for each part of a grid."""

    starts: tuple[np.ndarray, ...]
    """Per tensor dim, the first positions of its spans."""
    stops: tuple[np.ndarray, ...]
    index: tuple[np.ndarray, ...]
    """Per tensor dim, which of its spans each part has [p]."""
    copies: int
    """How many parts have the same place in all dims: those of partial sums."""

    @property
    def sizes(self) -> list[np.ndarray]:
        """Per tensor dim, the lengths of its spans."""
        return [stop - start for start, stop in zip(self.starts, self.stops, strict=True)]


def _grid(degrees: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Index of every part along n, c, k, h, w."""
    return np.unravel_index(np.arange(math.prod(degrees)), degrees)


def spans_of(op: Op, degrees: Sequence[int], samples: int, which: int | None) -> Spans:
    """Of a grid with these degrees in n, c, k, h, w, for a micro-batch of `samples`: what its parts give (`which` None)
    or need of input `which`."""
    def box(index: Sequence[int]) -> Box:
        part = part_at(op, degrees, 2, index)
        return op.output_box(part) if which is None else op.needs(part)[which]

    n, c, k, h, w = _grid(degrees)
    _, of_c, of_k, of_h, of_w = degrees
    groups = [[(i, j, 0, 0) for i in range(of_c) for j in range(of_k)],
              [(0, 0, i, 0) for i in range(of_h)], [(0, 0, 0, i) for i in range(of_w)]]
    first = box((0, 0, 0, 0)).spans
    follows = first[0] == (0, 2)  # otherwise the box is the same for all samples
    spans = [[cut(samples, degrees[0], i) for i in range(degrees[0])] if follows else [first[0]]]
    spans += [[box(index).spans[d] for index in group] for d, group in enumerate(groups[: len(first) - 1], start=1)]
    ends = [np.array(group, dtype=np.int64) for group in spans]
    index = (n if follows else np.zeros_like(n), c * of_k + k, h, w)[: len(ends)]
    return Spans(tuple(e[:, 0] for e in ends), tuple(e[:, 1] for e in ends), index, len(n) // math.prod(map(len, ends)))


def part_at(op: Op, degrees: Sequence[int], samples: int, index: Sequence[int]) -> Part:
    """The part with these indices along c, k, h, w, for `samples` samples."""
    of_c, of_k, *of_map = degrees[1:]
    spans = [cut(size, degree, i) for size, degree, i in zip(op.domain, (of_c, *of_map), (index[0], *index[2:]),
                                                             strict=False)]
    return Part(Box(((0, samples), *spans)), cut(op.extent("k"), of_k, index[1]) if of_k > 1 else None)


@dataclass(frozen=True, eq=False)
class PartKinds:
    """The parts of a grid, those of equal size taken together."""

    parts: tuple[Part, ...]
    """One of each kind."""
    of: np.ndarray
    """Which kind each part is [p]."""


def part_kinds(op: Op, degrees: Sequence[int], rows: Sequence[int]) -> PartKinds:
    """The kinds of parts of a grid, when those with index i in n have `rows[i]` samples."""
    n, c, k, h, w = _grid(degrees)
    _, of_c, of_k, of_h, of_w = degrees

    def kinds(group: Iterable[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], np.ndarray]:
        """An index of each kind, and the kind of each index."""
        found: dict[object, int] = {}
        firsts: list[tuple[int, ...]] = []
        of: list[int] = []
        for index in group:
            part = part_at(op, degrees, 1, index)
            span = part.k or (0, 0)
            sizes = (part.box.shape, span[1] - span[0], tuple(box.shape for box in op.needs(part)),
                     tuple((name, box.shape) for name, box in op.parameter_boxes(part).items()),
                     index[2] in (0, of_h - 1), index[3] in (0, of_w - 1), op.multiply_adds(part))
            if sizes not in found:
                found[sizes] = len(firsts)
                firsts.append(index)
            of.append(found[sizes])
        return firsts, np.array(of)

    counts = sorted(set(rows))
    kind_n = np.array([counts.index(count) for count in rows])
    firsts_ck, kind_ck = kinds((i, j, 0, 0) for i in range(of_c) for j in range(of_k))
    firsts_h, kind_h = kinds((0, 0, i, 0) for i in range(of_h))
    firsts_w, kind_w = kinds((0, 0, 0, i) for i in range(of_w))
    parts = tuple(part_at(op, degrees, count, (ck[0], ck[1], at_h[2], at_w[3]))
                  for count, ck, at_h, at_w in itertools.product(counts, firsts_ck, firsts_h, firsts_w))
    of = (kind_n[n], kind_ck[c * of_k + k], kind_h[h], kind_w[w])
    return PartKinds(parts, np.ravel_multi_index(of, (len(counts), len(firsts_ck), len(firsts_h), len(firsts_w))))
