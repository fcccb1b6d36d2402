"""Lower bounds of prices for thousands of candidates at once, from a few numbers of each.

    op         forward, backward ≥ those of one of its parts; a price is that of the slowest part
    sum        ≥ what worker 0 has to send for it (its piece is among the smallest, which all have); update ≥ of worker
               0's shard
    exchange   ≥ the time of the links, where one worker needs boxes of v numbers from t partial sums and holds of them
               at most o = Π_d min(longest span held, span needed):
                   received      v·t − o
                   from outside its node   v·t − Π_d min(longest span that a node holds, span needed) · (sums in it)
                   sent by the busiest ≥ all that is received ÷ those who hold something

Every bound is below the exact price of the same candidate whatever the cluster's compute times are; the search for
the optimum (`exact`) never asks for an exact price that the bounds have made pointless.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from parallel.cluster import Cluster
from parallel.graph import Edge
from parallel.graph.box import Box, cut
from parallel.graph.ops import DIMS, Op, Part
from parallel.program.lowering import BUCKET_BYTES
from parallel.program.precision import ACTIVATION_BYTES, WEIGHT_BYTES
from parallel.search.communication_bounds import Pairs, link_seconds
from parallel.search.space import Degrees, Space

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Costs:
    """Seconds of an op by candidate [l]."""

    forward_s: Floats
    backward_s: Floats
    sum_s: Floats
    update_s: Floats
    gather_s: Floats


class Bounds(Protocol):
    """Lower bounds of the prices of a space."""

    def costs(self, op: str) -> Costs:
        """Of an op, by candidate of its leader."""
        ...

    def exchange_s(self, edge: Edge, producers: Ints, consumers: Ints) -> Floats:
        """Of an exchange in either direction, for candidates of its ends; the two broadcast."""
        ...

    def closer_s(self, edge: Edge, producers: Ints, consumers: Ints) -> tuple[Floats, Floats] | None:
        """Of the exchanges of producers[i] with consumers[i], forward and backward [i]; slower and closer. None if
        nothing closer is known."""
        ...


class NoBounds:
    """Nothing is known beforehand."""

    def __init__(self, space: Space) -> None:
        self._space = space

    def costs(self, op: str) -> Costs:
        zeros = np.zeros(len(self._space.degrees[op]))
        return Costs(zeros, zeros, zeros, zeros, zeros)

    def exchange_s(self, edge: Edge, producers: Ints, consumers: Ints) -> Floats:
        return np.zeros(np.broadcast_shapes(producers.shape, consumers.shape))

    def closer_s(self, edge: Edge, producers: Ints, consumers: Ints) -> tuple[Floats, Floats] | None:
        return None


@dataclass(frozen=True, eq=False)
class _Held:
    """What workers hold of an op's output, by candidate."""

    workers: Ints
    """[l]"""
    longest: Ints
    """Spans of a worker [l, d]."""
    node: Ints
    """Spans of what a node holds together [l, d]."""
    node_terms: Ints
    """Partial sums of the same numbers in a node [l]."""
    terms: Ints
    """Partial sums of the same numbers [l]."""


@dataclass(frozen=True, eq=False)
class _Need:
    """What workers need of an op's input, by candidate."""

    workers: Ints
    some: Ints
    """Spans of a worker in the middle of the map, with the last features [l, d]."""
    least: Ints
    """Numbers that every worker needs, at least [l]."""


class LinkBounds:
    """Bounds for a cluster."""

    def __init__(self, space: Space, cluster: Cluster, precision: str) -> None:
        self._space, self._cluster, self._precision = space, cluster, precision
        self._activation, self._weight = ACTIVATION_BYTES[precision], WEIGHT_BYTES[precision]
        self._trained = space.graph.trained_ops
        self._costs: dict[str, Costs] = {}
        self._held: dict[str, _Held] = {}
        self._need: dict[tuple[str, int], _Need] = {}
        self._pairs: dict[Edge, Pairs] = {}

    def costs(self, op: str) -> Costs:
        if op not in self._costs:
            self._costs[op] = self._price(self._space.graph[op])
        return self._costs[op]

    def _price(self, op: Op) -> Costs:
        compute, precision = self._cluster.compute, self._precision
        gradient, trained = any(name in self._trained for name in op.inputs), op.name in self._trained
        parts = [some_part(op, degrees, self._space.batch_size) for degrees in self._space.degrees[op.name]]
        forward = np.array([compute.forward_s(op, part, precision) for part in parts])
        backward = np.array([compute.backward_s(op, part, precision, gradient) for part in parts]) \
            if trained else np.zeros(len(parts))
        # Where workers share cores, the largest part takes as long as if it were alone at least.
        alone = self._cluster.contention_factor(1)
        return Costs(forward * alone, backward * alone, *self._syncs(op))

    def _syncs(self, op: Op) -> tuple[Floats, Floats, Floats]:
        """Seconds of summing, updating and gathering."""
        degrees = self._space.degrees[op.name]
        sums, updates, gathers = np.zeros((3, len(degrees)))
        if not op.parameters:
            return sums, updates, gathers
        cluster, compute, per_node = self._cluster, self._cluster.compute, self._cluster.workers_per_node
        n, c, k, h, w = (np.array(column, dtype=np.int64) for column in zip(*degrees, strict=True))
        holders, size, hw = n * h * w, n * c * k * h * w, h * w
        # Worker 0's group is every (c·k)th block of h·w workers; those of its node are the first per_node.
        period = c * k * hw
        blocks = np.minimum(n, per_node // period)
        near = blocks * hw + np.where(blocks < n, np.minimum(hw, np.maximum(0, per_node - blocks * period)), 0)
        # Where nodes cut the layout evenly, every worker has as many partners in its node and moves at least as much.
        even = (per_node % period == 0) | ((period % per_node == 0) & ((per_node % hw == 0) | (hw % per_node == 0)))
        alike = np.where(size <= per_node, size, np.where(even & (size % per_node == 0), per_node, 1))
        shards = np.zeros(len(degrees), dtype=np.int64)
        kinds = {(row[1], row[2]) for row in degrees}
        firsts, lasts = ({(a, b): op.parameter_boxes(_part(op, (1, a, b, 1, 1), 1, (0, i * (b - 1), 0, 0)))
                          for a, b in kinds} for i in (0, 1))
        for name in op.parameters:
            numbers = np.array([firsts[row[1], row[2]][name].volume for row in degrees], dtype=np.int64)
            everywhere = np.array([name in lasts[row[1], row[2]] for row in degrees])
            shards += -(-numbers // holders)
            share = np.minimum(1.0, numbers * 4 / BUCKET_BYTES)
            count = np.where(everywhere, alike, 1)
            inside = (near - 1) * numbers / holders * (count if cluster.inside.shared else 1)
            load = link_seconds(cluster.inside, inside * self._weight / share)
            if cluster.between is not None:
                between = (holders - near) * numbers / holders * (count if cluster.between.shared else 1)
                load = np.maximum(load, link_seconds(cluster.between, between * self._weight / share))
            announced = cluster.shared_memory & (near == holders)
            sums += share * load * (holders > 1)
            gathers += share * np.where(announced, cluster.inside.latency_s, load) * (holders > 1)
        for (shard, copies), at in _groups(shards, holders):
            updates[at] = compute.update_s(shard, self._precision) + (
                compute.add_s((copies - 1) * shard, self._precision) if copies > 1 else 0.0)
        return sums * (1 - 1e-9), updates * self._crowded(size), gathers * (1 - 1e-9)

    def _crowded(self, size: Ints) -> Floats:
        """How many times as long computing takes on so many workers."""
        cluster = self._cluster
        return np.array([cluster.contention_factor(min(count, cluster.workers_per_node)) for count in size.tolist()])

    def exchange_s(self, edge: Edge, producers: Ints, consumers: Ints) -> Floats:
        producer = self._space.graph[edge.producer]
        if producer.domain != producer.shape or producer.wide:  # statistics: few numbers, in boxes of their own
            return NoBounds(self._space).exchange_s(edge, producers, consumers)
        cluster, per_node = self._cluster, self._cluster.workers_per_node
        held, need = self._holds(producer), self._needs(edge)
        terms, senders, receivers = held.terms[producers], held.workers[producers], need.workers[consumers]
        own, near, wanted, biggest = 1, held.node_terms[producers], 1, 1
        for d in range(held.longest.shape[1]):
            some = need.some[consumers, d]
            wanted = wanted * some
            biggest = biggest * held.longest[producers, d]
            own = own * np.minimum(held.longest[producers, d], some)
            near = near * np.minimum(held.node[producers, d], some)
        received = np.maximum(0, terms * wanted - own)
        least = need.least[consumers]
        everything = np.maximum(received, receivers * terms * least - np.minimum(senders, receivers) * biggest)
        one = np.maximum(received, everything / senders)
        itemsize, alone = self._activation, np.maximum(senders, receivers) <= per_node
        inside = link_seconds(cluster.inside, (everything if cluster.inside.shared else one) * itemsize)
        if cluster.between is None:
            return inside * (1 - 1e-9)
        outside = np.where(alone, 0, np.maximum(0, terms * wanted - near))
        crossing = link_seconds(cluster.between, outside * itemsize)
        half = received / 2 * itemsize
        either = np.minimum(link_seconds(cluster.inside, half), link_seconds(cluster.between, half))
        return np.where(alone, inside, np.maximum(crossing, either)) * (1 - 1e-9)

    def closer_s(self, edge: Edge, producers: Ints, consumers: Ints) -> tuple[Floats, Floats] | None:
        producer = self._space.graph[edge.producer]
        if producer.domain != producer.shape or producer.wide:
            return None
        if edge not in self._pairs:
            self._pairs[edge] = Pairs(self._space, edge, self._cluster, self._precision)
        return self._pairs[edge].seconds(producers, consumers)

    def _holds(self, op: Op) -> _Held:
        if op.name not in self._held:
            per_node, sizes = self._cluster.workers_per_node, (self._space.batch_size, *op.shape)
            degrees = np.array(self._space.degrees[op.name], dtype=np.int64)
            n, c, k, h, w = degrees.T
            stride = {"n": c * k * h * w, "c": k * h * w, "k": h * w, "h": w, "w": np.ones_like(w)}
            longest, node = [], []
            for size, dim in zip(sizes, "nchw", strict=False):
                degree = degrees[:, DIMS.index(dim)]
                longest.append(-(-size // degree))
                node.append(np.minimum(size, _covered(degree, stride[dim], per_node) * longest[-1]))
            terms = np.array([math.prod(row[DIMS.index(dim)] for dim in op.sums_over)
                              for row in self._space.degrees[op.name]], dtype=np.int64)
            near = np.minimum(terms, _covered(k, stride["k"], per_node))
            self._held[op.name] = _Held(degrees.prod(axis=1), np.stack(longest, axis=1), np.stack(node, axis=1), near,
                                        terms)
        return self._held[op.name]

    def _needs(self, edge: Edge) -> _Need:
        key = edge.consumer, edge.which
        if key not in self._need:
            op, samples, which = self._space.graph[edge.consumer], self._space.batch_size, edge.which
            degrees = self._space.degrees[op.name]
            if type(op).needs is Op.needs and op.domain == op.shape:  # a part needs its own box
                grid = np.array(degrees, dtype=np.int64)
                sizes, columns = np.array((samples, *op.shape)), [0, 1, 3, 4][: 1 + len(op.shape)]
                self._need[key] = _Need(grid.prod(axis=1), -(-sizes // grid[:, columns]),
                                        (sizes // grid[:, columns]).prod(axis=1))
                return self._need[key]
            some = [op.needs(some_part(op, row, samples))[which].shape for row in degrees]
            # A part has least at an end: of the map, for its halo; of the features, where they are of another input.
            ends = [[(0, 0, 0, 0), (row[1] - 1, row[2] - 1, 0, 0)] for row in degrees]
            least = [min(op.needs(_part(op, row, samples // row[0], end))[which].volume for end in of)
                     for row, of in zip(degrees, ends, strict=True)]
            self._need[key] = _Need(np.array([math.prod(row) for row in degrees]), np.array(some, dtype=np.int64),
                                    np.array(least, dtype=np.int64))
        return self._need[key]


def _covered(degree: Ints, stride: Ints, per_node: int) -> Ints:
    """How many indices of a dim the workers of one node have, at most; consecutive indices are `stride` apart."""
    aligned = (per_node % stride == 0) | (stride % per_node == 0)
    return np.minimum(degree, np.where(aligned, np.maximum(1, per_node // stride), (per_node - 1) // stride + 2))


@lru_cache(maxsize=65536)
def _middle(size: int, degree: int) -> int:
    """The last of the longest pieces that is not at an end, if there is one."""
    if degree < 3:
        return degree - 1
    return max(range(1, degree - 1), key=lambda i: (cut(size, degree, i)[1] - cut(size, degree, i)[0], i))


def some_part(op: Op, degrees: Degrees, batch_size: int) -> Part:
    """One of the largest parts: the last features, the middle of the map."""
    sizes = op.domain
    h, w = (_middle(sizes[d], degrees[d + 2]) if len(sizes) > d else 0 for d in (1, 2))
    return _part(op, degrees, -(-batch_size // degrees[0]), (degrees[1] - 1, degrees[2] - 1, h, w))


def _part(op: Op, degrees: Degrees, samples: int, index: tuple[int, int, int, int]) -> Part:
    """The part with these indices along c, k, h, w, for `samples` samples."""
    spans = [(0, samples)]
    for size, degree, i in zip(op.domain, (degrees[1], *degrees[3:]), (index[0], *index[2:]), strict=False):
        spans.append((size * i // degree, size * (i + 1) // degree))
    return Part(Box(tuple(spans)), cut(op.extent("k"), degrees[2], index[1]) if degrees[2] > 1 else None)


def _groups(*columns: Ints) -> list[tuple[tuple[int, ...], Ints]]:
    """The different rows of some columns, and where they are."""
    rows, inverse = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    order = np.argsort(inverse, kind="stable")
    ends = np.searchsorted(inverse[order], np.arange(len(rows) + 1))
    return [(tuple(row.tolist()), order[a:b]) for row, a, b in zip(rows, ends, ends[1:], strict=False)]
