"""How layouts divide the tensors of an op among workers, for many layouts and workers at once.

A layout is a grid, and every op's rule treats the dims independently: of a box of its output, or of
an input, span 0 depends on the part's index in n, span 1 on those in c and k, span 2 on h, span 3 on
w. A partition is therefore, for each dim of the tensor, a few lists of spans ("ways" of cutting the
dim), shared by all layouts that cut it alike there, and each worker's index into them:

    box of part i under layout l = product over the tensor's dims d of span_{l,d}[index_{l,d}(i)]

The parts of an op have few different sizes, and parts of equal size cost the same (`PartSizes`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from parallel.graph.box import Box, Cut, Span, cut, degree
from parallel.graph.ops import Op, Part
from parallel.plans import Layout
from parallel.plans.layout import samples_by_index

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Grids:
    """Layouts of one op as arrays."""

    degrees: Ints
    """Numbers of parts in n, c, k, h, w [l, 5]."""
    parts: Ints
    """The part that each worker computes, −1 for none [l, w + 1]. The last column is always −1, so that
    −1 is the index of no worker."""
    codes: Ints
    """Cuts in n, c, k, h, w [l, 5]: the degree, or −1 − the index of the weights."""
    weights: tuple[tuple[int, ...], ...]
    """The different weights of the layouts."""

    @property
    def holders(self) -> Ints:
        """Number of workers that hold the same box of a parameter [l]."""
        return self.degrees[:, (0, 3, 4)].prod(axis=1)

    @staticmethod
    def of(layouts: Sequence[Layout], workers: int) -> Grids:
        """Return the grids of any layouts on `workers` workers."""
        parts = np.full((len(layouts), workers + 1), -1, dtype=np.int64)
        for row, layout in zip(parts, layouts, strict=True):
            row[list(layout.on)] = np.arange(len(layout.on))
        degrees, codes, weights = _coded([layout.cuts for layout in layouts])
        return Grids(degrees, parts, codes, weights)

    @staticmethod
    def nested(cuts: Sequence[Sequence[Cut]], workers: int, order: Sequence[int] = ()) -> Grids:
        """Return grids in which worker `order[i]` computes part i; worker i without an order."""
        degrees, codes, weights = _coded(cuts)
        place = np.arange(workers + 1)
        place[list(order)] = np.arange(len(order))
        parts = np.where(place < degrees.prod(axis=1)[:, None], place, -1)
        return Grids(degrees, parts, codes, weights)

    def cut_of(self, code: int) -> Cut:
        """Return the cut with a code."""
        return code if code >= 0 else self.weights[-1 - code]


def _coded(cuts: Sequence[Sequence[Cut]]) -> tuple[Ints, Ints, tuple[tuple[int, ...], ...]]:
    """Return the degrees, codes and weights of `Grids`."""
    if not any(isinstance(by, tuple) for row in cuts for by in row):
        degrees = np.array(cuts, dtype=np.int64).reshape(-1, 5)
        return degrees, degrees, ()
    code: dict[tuple[int, ...], int] = {}
    codes = [
        [-1 - code.setdefault(by, len(code)) if isinstance(by, tuple) else by for by in row] for row in cuts
    ]
    degrees = np.array([list(map(degree, row)) for row in cuts], dtype=np.int64)
    return degrees, np.array(codes, dtype=np.int64), tuple(code)


@dataclass(frozen=True, eq=False)
class Cuts:
    """The different ways in which layouts cut one dim of a tensor.

    Way a has the spans first[a] … first[a + 1] − 1.
    """

    first: Ints
    """[a + 1]"""
    starts: Floats
    """Positions are integers. As floats they are exact below 2^53 and multiply faster."""
    stops: Floats
    way: Ints
    """The way of each layout [l]."""

    @staticmethod
    def by(codes: Ints, spans: Callable[..., list[Span]]) -> Cuts:
        """Return the cuts of layouts with these codes [l, …]; `spans` lists those of one row of codes."""
        different, way = _different(codes)
        lists = [spans(*row) for row in different.tolist()]
        first = np.cumsum([0, *map(len, lists)])
        ends = np.array(list(itertools.chain.from_iterable(lists)), dtype=np.float64).reshape(-1, 2)
        return Cuts(first, ends[:, 0], ends[:, 1], way)

    @cached_property
    def _tables(self) -> tuple[Ints, Ints, Floats]:
        """Numbers by way and position x [a, x]: the spans that start at x or before, those that stop before
        x, and the positions below x that lie in spans, as often as they do. Empty spans are left out."""
        way = np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))
        some = self.stops > self.starts
        size, ways = int(self.stops.max()) + 2, len(self.first) - 1
        at = [way[some] * size + ends[some].astype(np.int64) for ends in (self.starts, self.stops + 1)]
        started, stopped = (
            np.bincount(found, minlength=ways * size).reshape(ways, size).cumsum(axis=1) for found in at
        )
        covered = np.zeros((ways, size))
        np.cumsum(started[:, :-1] - stopped[:, 1:], axis=1, out=covered[:, 1:])
        return started, stopped, covered

    def common(self, ways: Ints, starts: Floats, stops: Floats) -> Floats:
        """Return the overlap of spans [start, stop) [..., m, v] with all spans of a way [...]."""
        way, start, stop = self._at(ways, starts, stops)
        covered = self._tables[2]
        result: Floats = covered[way, stop] - covered[way, start]
        return result

    def containing(self, ways: Ints, starts: Floats, stops: Floats) -> Floats:
        """Return the overlap with those spans of a way that contain [start, stop).

        None of a way's spans lies within another one with room on both sides, so that those that
        stop before `stop` are the first of those that start at `start` or before.
        """
        way, start, stop = self._at(ways, starts, stops)
        started, stopped, _ = self._tables
        result: Floats = np.maximum(started[way, start] - stopped[way, stop], 0) * (stops - starts)
        return result

    def _at(self, ways: Ints, starts: Floats, stops: Floats) -> tuple[Ints, Ints, Ints]:
        last = self._tables[0].shape[1] - 1
        start, stop = (np.minimum(ends, last).astype(np.int64) for ends in (starts, stops))
        return ways[..., None, None], start, stop


def _different(rows: Ints) -> tuple[Ints, Ints]:
    """Return the different rows [a, …], and the number of each row among them [l]."""
    # Most queries of a simulation are about one layout, and np.unique is slow.
    if len(rows) == 1 or rows.shape[1] == 0:
        return rows[:1], np.zeros(len(rows), dtype=np.int64)
    different, number = np.unique(rows, axis=0, return_inverse=True)
    return different, number.reshape(-1)


@dataclass(frozen=True, eq=False)
class Places:
    """The boxes of some workers under some layouts."""

    starts: tuple[Floats, ...]
    """Per tensor dim [..., m, v]."""
    stops: tuple[Floats, ...]
    there: Bools
    """Whether the worker has a part [..., m, v]."""

    @property
    def volume(self) -> Floats:
        """Elements in each box [..., m, v]."""
        result = self.there.astype(np.float64)
        for start, stop in zip(self.starts, self.stops, strict=True):
            result *= np.maximum(stop - start, 0.0)
        return result

    def take(self, rows: Ints) -> Places:
        """Return the places of layouts, given as an array of any shape."""
        return Places(
            tuple(s[rows] for s in self.starts), tuple(s[rows] for s in self.stops), self.there[rows]
        )


class Partition:
    """The boxes of the output that an op's parts compute (`which` None), or need of input `which`."""

    def __init__(self, op: Op, grids: Grids, samples: int, which: int | None) -> None:
        def box(index: Sequence[int], c: Cut = 1, k: Cut = 1, h: Cut = 1, w: Cut = 1) -> tuple[Span, ...]:
            part = part_at(op, (1, c, k, h, w), 2, index)
            return (op.output_box(part) if which is None else op.needs(part)[which]).spans

        whole, plain = box((0, 0, 0, 0)), gives_or_needs_its_box(op, which)
        self.grids = grids
        self.by_sample = whole[0] == (0, 2)
        """Whether a box depends on the samples of its part."""

        def ways(dims: slice, spans: Callable[..., list[Span]]) -> Cuts:
            return Cuts.by(grids.codes[:, dims], lambda *codes: spans(*map(grids.cut_of, codes)))

        if self.by_sample:
            cuts = [ways(slice(0, 1), lambda n: [cut(samples, n, i) for i in range(degree(n))])]
        else:
            cuts = [ways(slice(0, 0), lambda: [whole[0]])]
        if len(whole) > 1:
            cuts.append(
                ways(
                    slice(1, 3),
                    lambda c, k: [
                        cut(op.domain[0], c, i) if plain else box((i, j, 0, 0), c=c, k=k)[1]
                        for i in range(degree(c))
                        for j in range(degree(k))
                    ],
                )
            )
        if len(whole) > 2:
            cuts.append(ways(slice(3, 4), lambda h: [box((0, 0, i, 0), h=h)[2] for i in range(degree(h))]))
        if len(whole) > 3:
            cuts.append(ways(slice(4, 5), lambda w: [box((0, 0, 0, i), w=w)[3] for i in range(degree(w))]))
        self.cuts = tuple(cuts)

    @cached_property
    def copies(self) -> Floats:
        """Number of parts that have the same box, as partial sums do [l]."""
        boxes = np.stack([np.diff(cuts.first)[cuts.way] for cuts in self.cuts]).prod(axis=0)
        result: Floats = self.grids.degrees.prod(axis=1) / boxes
        return result

    def places(self, layouts: Ints, workers: Ints) -> Places:
        """Return the boxes of workers [m, v] under layouts of any shape [...]: arrays [..., m, v]."""
        parts = self.grids.parts[layouts[..., None, None], workers]
        there = parts >= 0
        _, c, k, h, w = np.moveaxis(self.grids.degrees[layouts], -1, 0)[..., None, None]
        rest, at_w = np.divmod(np.maximum(parts, 0), w)
        rest, at_h = np.divmod(rest, h)
        at_n, at_ck = np.divmod(rest, c * k)
        index = (at_n if self.by_sample else np.zeros_like(at_n), at_ck, at_h, at_w)[: len(self.cuts)]
        positions = [
            cuts.first[cuts.way[layouts]][..., None, None] + i
            for cuts, i in zip(self.cuts, index, strict=True)
        ]
        return Places(
            tuple(cuts.starts[at] for cuts, at in zip(self.cuts, positions, strict=True)),
            tuple(cuts.stops[at] for cuts, at in zip(self.cuts, positions, strict=True)),
            there,
        )


def gives_or_needs_its_box(op: Op, which: int | None) -> bool:
    """Return whether a part's box is what it computes of the output, or needs of an input."""
    if which is None:
        return type(op).output_box is Op.output_box
    return type(op).needs is Op.needs and op.domain == op.shape


def part_at(op: Op, cuts: Sequence[Cut], samples: int, index: Sequence[int]) -> Part:
    """Return the part with these indices along c, k, h, w, for `samples` samples."""
    of_c, of_k, *of_map = cuts[1:]
    spans = [
        cut(size, by, i)
        for size, by, i in zip(op.domain, (of_c, *of_map), (index[0], *index[2:]), strict=False)
    ]
    return Part(Box(((0, samples), *spans)), cut(op.extent("k"), of_k, index[1]) if of_k != 1 else None)


@dataclass(frozen=True, eq=False)
class PartKinds:
    """The parts of a grid, grouped by size."""

    parts: tuple[Part, ...]
    """One of each kind. Every kind occurs."""
    _of: Sequence[Ints]
    _shape: tuple[int, ...]

    @property
    def of(self) -> Ints:
        """Kind of each part [p]."""
        grid = np.meshgrid(*self._of, indexing="ij")
        kinds: Ints = np.ravel_multi_index([axis.reshape(-1) for axis in grid], self._shape)
        return kinds


class PartSizes:
    """The kinds of parts of one op, memoised by dim."""

    def __init__(self, op: Op) -> None:
        self._op = op
        self._largest: dict[tuple[Cut, Cut, Cut, Cut], tuple[int, ...]] = {}
        self._known: dict[tuple[Cut, Cut, Cut, Cut], tuple[list[tuple[int, ...]], Ints]] = {}

    def kinds(self, cuts: Sequence[Cut], rows: Sequence[int]) -> PartKinds:
        """Return the kinds of parts of a grid, when those with index i in n have `rows[i]` samples."""
        _, c, k, h, w = cuts
        counts, of_n = np.unique(rows, return_inverse=True)
        (firsts_ck, of_ck), (firsts_h, of_h), (firsts_w, of_w) = (
            self._kinds(c, k, 1, 1),
            self._kinds(1, 1, h, 1),
            self._kinds(1, 1, 1, w),
        )
        parts = tuple(
            part_at(self._op, cuts, count, (ck[0], ck[1], at_h[2], at_w[3]))
            for count, ck, at_h, at_w in itertools.product(counts.tolist(), firsts_ck, firsts_h, firsts_w)
        )
        return PartKinds(
            parts,
            (of_n.reshape(-1), of_ck, of_h, of_w),
            (len(counts), len(firsts_ck), len(firsts_h), len(firsts_w)),
        )

    def largest(self, cuts: Sequence[Cut], samples: int) -> Part:
        """Return a part of the kind that reads most in each dim."""
        n, c, k, h, w = cuts
        i, j, _, _ = self._most(c, k, 1, 1)
        index = i, j, self._most(1, 1, h, 1)[2], self._most(1, 1, 1, w)[3]
        rows = max(samples_by_index(samples, n)) if isinstance(n, tuple) else -(-samples // n)
        return part_at(self._op, cuts, rows, index)

    def _most(self, c: Cut, k: Cut, h: Cut, w: Cut) -> tuple[int, ...]:
        if (c, k, h, w) not in self._largest:
            self._largest[c, k, h, w] = max(
                self._kinds(c, k, h, w)[0],
                key=lambda index: sum(
                    box.volume for box in self._op.needs(part_at(self._op, (1, c, k, h, w), 1, index))
                ),
            )
        return self._largest[c, k, h, w]

    def _kinds(self, c: Cut, k: Cut, h: Cut, w: Cut) -> tuple[list[tuple[int, ...]], Ints]:
        """Return an index along c, k, h, w of each kind of these cuts, and the kind of each index."""
        if (c, k, h, w) not in self._known:
            found: dict[object, int] = {}
            firsts: list[tuple[int, ...]] = []
            of: list[int] = []
            for index in itertools.product(*(range(degree(by)) for by in (c, k, h, w))):
                part = part_at(self._op, (1, c, k, h, w), 1, index)
                reduced = part.k or (0, 0)
                sizes = (
                    part.box.shape,
                    reduced[1] - reduced[0],
                    tuple(box.shape for box in self._op.needs(part)),
                    tuple((name, box.shape) for name, box in self._op.parameter_boxes(part).items()),
                    index[2] in (0, degree(h) - 1),
                    index[3] in (0, degree(w) - 1),
                    self._op.multiply_adds(part),
                )
                if sizes not in found:
                    found[sizes] = len(firsts)
                    firsts.append(index)
                of.append(found[sizes])
            self._known[c, k, h, w] = firsts, np.array(of)
        return self._known[c, k, h, w]
