"""Exchanges of many pairs of candidates at once: bounds so close that few exact prices have to be worked out.

`simulator.loads` adds up, for one exchange, what every worker moves; here the same sums are made for thousands of
pairs in one go, for some workers w (all of them up to 16, else those of some nodes). Boxes are products of spans, and
sums over all partners products of sums over spans, which a table has for every two ways of cutting a dim:

    out(w)   = Π_d Σ_j |held_d(w) ∩ need_d(j)| − own(w)         own(w)  = Π_d |held_d(w) ∩ need_d(w)|
    into(w)  = t · Π_d |need_d(w)| − own(w)                     t: partial sums of the same numbers
    near(w)  = Σ over the workers v of w's node Π_d |held_d(v) ∩ need_d(w)|

and likewise of the pieces that lie in one stretch in what holds or needs them, which need not be copied. The links'
time and that of copying and adding are those of the price; taking the worst of some workers instead of all makes them
bounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parallel.cluster import Cluster, Link
from parallel.graph import Edge
from parallel.graph.box import Box, cut
from parallel.graph.ops import Op, Part
from parallel.program.precision import ACTIVATION_BYTES
from parallel.search.space import Space
from parallel.simulator.cost_model import handled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
ALL = 16
"""Workers up to which all are looked at."""
NODES = 2
"""Nodes that are looked at beyond."""
NUMBERS = 1 << 21
"""In a table of pairs and workers: 16 MB."""


@dataclass(frozen=True, eq=False)
class _Cuts:
    """A dim of a tensor, cut in different ways; the spans of way i are those from first[i] on."""

    first: Ints
    starts: Floats
    stops: Floats
    ways: Ints
    """The way of each candidate [l]."""


class _Tables:
    """Sums over partners of what is common in a dim, for the ways of cutting it that were asked for."""

    def __init__(self, held: _Cuts, need: _Cuts, may_scatter: bool) -> None:
        self._held, self._need, self._may_scatter = held, need, may_scatter
        shape = len(held.first) - 1, len(need.first) - 1
        self._first_held, self._first_need = (np.full(shape, -1, dtype=np.int64) for _ in range(2))
        self._ends = [0, 0]
        self._parts: tuple[list[Floats], list[Floats], list[Floats]] = ([], [], [])
        self._whole: tuple[Floats, Floats, Floats] | None = None

    def sums(self, a: Ints, b: Ints, i: Ints, j: Ints) -> tuple[Floats, Floats, Floats]:
        """For ways a of holding and b of needing [p], spans i of the first and j of the second [p, w]: by span held,
        what is common with all spans needed, and with those that contain it; by span needed, with those that contain
        it. In dim n a piece is never scattered."""
        missing = self._first_held[a, b] < 0
        if missing.any():
            for way in set(zip(a[missing].tolist(), b[missing].tolist(), strict=True)):
                self._add(*way)
            self._whole = None
        if self._whole is None:
            everything, uncut, filling = (np.concatenate(parts) for parts in self._parts)
            self._whole = everything, uncut, filling
        at_held, at_need = self._first_held[a, b][:, None] + i, self._first_need[a, b][:, None] + j
        return self._whole[0][at_held], self._whole[1][at_held], self._whole[2][at_need]

    def _add(self, a: int, b: int) -> None:
        held, need = self._held, self._need
        of_held, of_need = slice(*held.first[a : a + 2]), slice(*need.first[b : b + 2])
        start, stop = held.starts[of_held, None], held.stops[of_held, None]
        start_q, stop_q = need.starts[None, of_need], need.stops[None, of_need]
        common = np.maximum(0, np.minimum(stop, stop_q) - np.maximum(start, start_q))
        uncut, filling = ((common * (common == whole) if self._may_scatter else common)
                          for whole in (stop - start, stop_q - start_q))
        self._first_held[a, b], self._first_need[a, b] = self._ends
        for part, found in zip(self._parts, (common.sum(axis=1), uncut.sum(axis=1), filling.sum(axis=0)), strict=True):
            part.append(found)
        self._ends[0] += common.shape[0]
        self._ends[1] += common.shape[1]


class Pairs:
    """The exchange over one edge, for any candidates of its ends."""

    def __init__(self, space: Space, edge: Edge, cluster: Cluster, precision: str) -> None:
        self._cluster, self._precision = cluster, precision
        self._itemsize = ACTIVATION_BYTES[precision]
        producer, consumer = space.graph[edge.producer], space.graph[edge.consumer]
        held, need = (np.array(space.degrees[op.name], dtype=np.int64) for op in (producer, consumer))
        self._held_degrees, self._need_degrees = held, need
        self._terms = np.array([math.prod(row["nckhw".index(d)] for d in producer.sums_over) for row in held.tolist()])
        dims = 1 + len(producer.shape)
        sizes = (space.batch_size, *producer.shape)
        self._held = [_held_cuts(sizes[d], held[:, (0, 1, 3, 4)[d]]) for d in range(dims)]
        self._need = [_held_cuts(space.batch_size, need[:, 0])]
        self._need += [_need_cuts(consumer, edge.which, d, need) for d in range(1, dims)]
        self._tables = [_Tables(self._held[d], self._need[d], d > 0) for d in range(dims)]
        nodes, per_node = -(-space.workers // cluster.workers_per_node), cluster.workers_per_node
        chosen = range(nodes) if space.workers <= ALL else sorted({(2 * i + 1) * nodes // (2 * NODES) for i in
                                                                   range(NODES)} | {nodes - 1})
        self._nodes = [np.arange(node * per_node, min((node + 1) * per_node, space.workers)) for node in chosen]
        self._dims = dims

    def seconds(self, producers: Ints, consumers: Ints) -> tuple[Floats, Floats]:
        """Forward and backward, at least [p]: of producers[i] to consumers[i]."""
        forward, backward = np.zeros(len(producers)), np.zeros(len(producers))
        workers = sum(map(len, self._nodes))
        rows = max(1, NUMBERS // (workers * min(workers, self._cluster.workers_per_node)))
        for at in range(0, len(producers), rows):
            piece = slice(at, at + rows)
            forward[piece], backward[piece] = self._piece(producers[piece], consumers[piece])
        return forward * (1 - 1e-9), backward * (1 - 1e-9)

    def _piece(self, p: Ints, q: Ints) -> tuple[Floats, Floats]:
        workers = np.concatenate(self._nodes)
        at_held, has = _places(self._held_degrees[p], workers, False)
        at_need, wants = _places(self._need_degrees[q], workers, True)
        terms = self._terms[p][:, None]
        own, out, straight_out, into, straight_into = (np.ones((len(p), len(workers))) for _ in range(5))
        own_uncut, own_filling = np.ones_like(own, dtype=bool), np.ones_like(own, dtype=bool)
        held_volume, wanted = np.ones_like(own), np.ones_like(own)
        spans = []
        for d in range(self._dims):
            held, need = self._held[d], self._need[d]
            i, j = at_held[d], at_need[d]
            a, b = held.ways[p], need.ways[q]
            everything, uncut, filling = self._tables[d].sums(a, b, i, j)
            at, at_q = held.first[a][:, None] + i, need.first[b][:, None] + j
            start, stop, start_q, stop_q = held.starts[at], held.stops[at], need.starts[at_q], need.stops[at_q]
            common = np.maximum(0, np.minimum(stop, stop_q) - np.maximum(start, start_q))
            own *= common
            held_volume *= stop - start
            wanted *= np.maximum(0, stop_q - start_q)
            out *= everything
            straight_out *= uncut
            straight_into *= filling
            if d:
                own_uncut &= common == stop - start
                own_filling &= common == stop_q - start_q
            spans.append((start, stop, start_q, stop_q))
        own *= has & wants
        held_volume, wanted = held_volume * has, wanted * wants
        out = out * has - own
        into = terms * wanted - own
        scattered_out = out - (straight_out * has - own * own_uncut)
        scattered_into = into - (terms * straight_into * wants - own * own_filling)
        link, far = self._link_s(spans, has, wants, own, out, into)
        adds, moves = terms > 1, link > 0
        packs = np.array(True) if not self._cluster.shared_memory else (far > 0)[:, None]
        forward = self._handling_s(*handled(scattered_out, scattered_into, into, own, wanted, packs, adds))
        backward = self._handling_s(*handled(scattered_into, scattered_out, out, own, held_volume, packs, True))
        forward, backward = np.where(moves, link + forward, 0.0), np.where(moves, link + backward, 0.0)
        return forward, backward

    def _link_s(self, spans: Sequence[tuple[Floats, ...]], has: NDArray[np.bool_], wants: NDArray[np.bool_],
                own: Floats, out: Floats, into: Floats) -> tuple[Floats, Floats]:
        """Of the most loaded level, and of that between nodes alone [p]."""
        cluster, itemsize = self._cluster, self._itemsize
        alone = len(self._nodes) == 1 and len(self._nodes[0]) == has.shape[1] and cluster.nodes == 1
        result, outside, at = np.zeros(len(has)), np.zeros(len(has)), 0
        for node in self._nodes:
            piece = slice(at, at + len(node))
            at += len(node)
            if alone:
                near_out, near_into = out, into
            else:
                pairs = np.ones((len(has), len(node), len(node)))  # [p, holder, needer]
                for start, stop, start_q, stop_q in spans:
                    pairs *= np.maximum(0, np.minimum(stop[:, piece, None], stop_q[:, None, piece])
                                        - np.maximum(start[:, piece, None], start_q[:, None, piece]))
                pairs *= has[:, piece, None] & wants[:, None, piece]
                near_out, near_into = pairs.sum(axis=2) - own[:, piece], pairs.sum(axis=1) - own[:, piece]
            load = near_out.sum(axis=1) if cluster.inside.shared else np.maximum(near_out.max(axis=1),
                                                                                 near_into.max(axis=1))
            result = np.maximum(result, link_seconds(cluster.inside, load * itemsize))
            if cluster.between is not None and not alone:
                far_out, far_into = out[:, piece] - near_out, into[:, piece] - near_into
                load = (np.maximum(far_out.sum(axis=1), far_into.sum(axis=1)) if cluster.between.shared
                        else np.maximum(far_out.max(axis=1), far_into.max(axis=1)))
                outside = np.maximum(outside, link_seconds(cluster.between, load * itemsize))
        return np.maximum(result, outside), outside

    def _handling_s(self, copied: Floats, added: Floats) -> Floats:
        """Copying and adding on a worker with much of it [p]."""
        compute, precision, rows = self._cluster.compute, self._precision, np.arange(len(copied))
        found: dict[tuple[float, float], float] = {}
        columns, alone = [], self._cluster.contention_factor(1)
        for worst in (copied, copied + added):
            at = worst.argmax(axis=1)
            pairs = list(zip(copied[rows, at].tolist(), added[rows, at].tolist(), strict=True))
            for c, a in set(pairs) - found.keys():
                found[c, a] = ((compute.copy_s(int(c), precision) if c else 0.0)
                               + (compute.add_s(int(a), precision) if a else 0.0))
            columns.append([found[pair] for pair in pairs])
        return alone * np.array(columns).max(axis=0)


def _places(degrees: Ints, workers: Ints, needs: bool) -> tuple[list[Ints], NDArray[np.bool_]]:
    """Per tensor dim, which span each worker has [p, w]; and whether it has a part."""
    n, c, k, h, w = (column[:, None] for column in degrees.T)
    at = np.broadcast_to(workers[None, :], (len(degrees), len(workers)))
    rest, of_w = np.divmod(at, w)
    rest, of_h = np.divmod(rest, h)
    if needs:
        rest, of_c = np.divmod(rest, c * k)
    else:
        rest, _ = np.divmod(rest, k)
        rest, of_c = np.divmod(rest, c)
    there = rest < n
    return [np.where(there, i, 0) for i in (rest, of_c, of_h, of_w)], there


def _held_cuts(size: int, degrees: Ints) -> _Cuts:
    """A dim cut into equal pieces, in as many ways as there are different degrees."""
    different, ways = np.unique(degrees, return_inverse=True)
    return _joined([[cut(size, degree, i) for i in range(degree)] for degree in different.tolist()], ways)


def _need_cuts(op: Op, which: int, d: int, degrees: Ints) -> _Cuts:
    """What the parts of an op need in dim d of its input."""
    if d == 1:
        different, ways = np.unique(degrees[:, 1:3], axis=0, return_inverse=True)
        indices = [[(c, k, 1, 1, i, j, 0, 0) for i in range(c) for j in range(k)] for c, k in different.tolist()]
    else:
        different, ways = np.unique(degrees[:, d + 1], return_inverse=True)
        indices = [[(1, 1, m, 1, 0, 0, i, 0) if d == 2 else (1, 1, 1, m, 0, 0, 0, i) for i in range(m)]
                   for m in different.tolist()]
    return _joined([[_needed(op, which, d, *index) for index in group] for group in indices], ways)


def _needed(op: Op, which: int, d: int, c: int, k: int, h: int, w: int, *index: int) -> tuple[int, int]:
    spans = [cut(size, degree, i) for size, degree, i in zip(op.domain, (c, h, w), (index[0], index[2], index[3]),
                                                             strict=False)]
    part = Part(Box(((0, 1), *spans)), cut(op.extent("k"), k, index[1]) if k > 1 else None)
    return op.needs(part)[which].spans[d]


def _joined(ways: list[list[tuple[int, int]]], of: Ints) -> _Cuts:
    first = np.concatenate([[0], np.cumsum([len(way) for way in ways])])
    # Floats hold these whole numbers exactly, and are multiplied several at a time.
    ends = np.array([span for way in ways for span in way], dtype=np.float64).reshape(-1, 2)
    return _Cuts(first, ends[:, 0], ends[:, 1], of.reshape(-1))


def link_seconds(link: Link, numbers: NDArray[Any]) -> Floats:
    """`Link.seconds` of many loads."""
    loads: Floats = np.asarray(numbers, dtype=np.float64)
    sizes, speeds = (np.log(np.array(column, dtype=np.float64)) for column in zip(*link.bandwidth, strict=True))
    if len(sizes) == 1:
        return np.where(loads > 0, link.latency_s + loads / link.bandwidth[0][1], 0.0)
    logs = np.interp(np.log(np.maximum(loads, 1e-300)), sizes, speeds)
    return np.where(loads > 0, link.latency_s + loads / np.exp(logs), 0.0)
