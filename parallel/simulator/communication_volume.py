"""Count the elements that every worker sends and receives in an exchange or a gradient sync.

One function serves the cost of one exchange and the bounds of millions: it takes pairs (layout of
the producer, layout of the consumer) and workers. Every cost is a maximum over workers. Over all
workers it is the cost, over some of them it is a lower bound.

A piece is the intersection of what worker v holds with what worker w needs. Boxes are products of
spans (`partition`), so that sums over all partners are products of sums over spans:

    own(w)   = Π_d |held_d(w) ∩ need_d(w)|                          stays on the worker
    out(w)   = copies · Π_d Σ_j |held_d(w) ∩ need_d(j)| − own(w)
    into(w)  = copies · Π_d Σ_i |held_d(i) ∩ need_d(w)| − own(w)
    inside   = the same sums over pairs of workers of one node

`copies` is the number of parts with equal boxes. `Cuts.common` returns the sums over spans. A piece
that is cut from a box in n alone is contiguous there, and is sent from, or received into, its place
(`Cuts.containing`). The other pieces are `scattered`: they are packed, or copied to their places.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from parallel.cluster import Cluster, Link
from parallel.simulator.partition import Bools, Floats, Grids, Ints, Partition, Places

MANY = 16
"""With this many workers or more, boxes are computed once per different layout, not once per pair."""


@dataclass(frozen=True, eq=False)
class Side:
    """Elements sent and received by workers [..., m, v]: m groups of v workers of one node."""

    out: Floats
    into: Floats

    def load(self, link: Link, within: bool) -> Floats:
        """Return the largest load of a link as `Link` defines it [...]; `within` a node, or between nodes."""
        if not link.shared:
            worst: Floats = np.maximum(self.out, self.into).max(axis=(-2, -1))
            return worst
        out = self.out.sum(axis=-1).max(axis=-1)
        shared: Floats = out if within else np.maximum(out, self.into.sum(axis=-1).max(axis=-1))
        return shared

    def __add__(self, other: Side) -> Side:
        return Side(self.out + other.out, self.into + other.into)

    def __sub__(self, other: Side) -> Side:
        return Side(self.out - other.out, self.into - other.into)

    def swapped(self) -> Side:
        """Return the transposed exchange's side."""
        return Side(self.into, self.out)


@dataclass(frozen=True, eq=False)
class Volume:
    """Elements of exchanges forward, by worker [..., m, v]; backward is the same with the sides swapped."""

    inside: Side
    """Elements that stay in the node."""
    between: Side
    """Elements that cross nodes."""
    scattered: Side | None
    """Pieces that are not contiguous in what their sender holds (`out`), or in what their receiver
    needs (`into`); None: not computed."""
    own: Floats
    """Elements that the worker both holds and needs."""
    held: Floats
    """Elements in the worker's box of the output."""
    wanted: Floats
    """Elements in the box that it needs."""
    taking_part: Bools
    """Workers that hold or need a part: the runtime starts the exchange on all of them."""

    @property
    def moving(self) -> Side:
        """Elements sent and received, inside nodes and between them."""
        return self.inside + self.between


def by_node(workers: int, cluster: Cluster) -> Ints:
    """Return all workers [node, worker of the node]; the last node may have more than there are.

    If nodes have different numbers of workers, rows are filled up with −1, which is no worker.
    """
    if cluster.node_workers:
        return _rows(cluster.node_sizes)[: cluster.node_of(workers - 1) + 1]
    per_node = cluster.workers_per_node
    nodes = -(-workers // per_node)
    return np.arange(nodes * per_node).reshape(nodes, per_node)


def same_node(workers: Ints, cluster: Cluster) -> Ints:
    """Return all workers of the node of each row of workers [m, v]: [m, worker of the node]."""
    if cluster.node_workers:
        nodes = [cluster.node_of(worker) for worker in workers[:, 0].tolist()]
        return _rows(cluster.node_sizes)[nodes]
    per_node = cluster.workers_per_node
    return workers[:, :1] // per_node * per_node + np.arange(per_node)


@lru_cache(maxsize=64)
def _rows(node_sizes: tuple[int, ...]) -> Ints:
    """Return all workers of nodes of these sizes [node, worker of the node], −1 for none."""
    first = np.cumsum([0, *node_sizes[:-1]])[:, None]
    place, size = np.arange(max(node_sizes)), np.array(node_sizes)[:, None]
    return np.where(place < size, first + place, -1)


class ExchangeVolume:
    """The exchanges over one edge of the graph, between layouts of its producer and consumer."""

    def __init__(self, held: Partition, need: Partition, cluster: Cluster) -> None:
        self._held, self._need, self._cluster = held, need, cluster

    def between(self, producers: Ints, consumers: Ints, workers: Ints, with_scattered: bool = True) -> Volume:
        """Return the volume for workers [m, v], each row of one node.

        The pairs of layouts are two arrays of indices that broadcast: [p] and [p], or [p, 1] and
        [1, q] for all pairs.
        """
        held, need = _places(self._held, producers, workers), _places(self._need, consumers, workers)
        both: Bools = held.there & need.there
        own, uncut, filling = both.astype(np.float64), both, both
        out, into = (
            held.there * _wide(self._need.copies[consumers]),
            need.there * _wide(self._held.copies[producers]),
        )
        whole_out, whole_into = out, into  # pieces that are contiguous
        for d, (holding, needing) in enumerate(zip(self._held.cuts, self._need.cuts, strict=True)):
            of_held = needing.way[consumers], held.starts[d], held.stops[d]
            of_need = holding.way[producers], need.starts[d], need.stops[d]
            common = _common(held, need, d)
            own = own * common
            sent, received = needing.common(*of_held), holding.common(*of_need)
            out, into = out * sent, into * received
            if with_scattered and d == 0:
                whole_out, whole_into = out, into
            elif with_scattered:
                uncut = uncut & (common == held.stops[d] - held.starts[d])
                filling = filling & (common == need.stops[d] - need.starts[d])
                whole_out = whole_out * needing.containing(*of_held)
                whole_into = whole_into * holding.containing(*of_need)
        moving = Side(out - own, into - own)
        scattered = (
            moving - Side(whole_out - own * uncut, whole_into - own * filling) if with_scattered else None
        )
        inside = self._inside(producers, consumers, workers, held, need, own, moving)
        return Volume(
            inside, moving - inside, scattered, own, held.volume, need.volume, held.there | need.there
        )

    def _inside(
        self,
        producers: Ints,
        consumers: Ints,
        workers: Ints,
        held: Places,
        need: Places,
        own: Floats,
        moving: Side,
    ) -> Side:
        """Return the elements that workers exchange with others of their node."""
        per_node = self._cluster.workers_per_node
        if self._cluster.nodes == 1:
            return moving
        if per_node == 1:
            return Side(np.zeros_like(own), np.zeros_like(own))
        if workers.shape[1] == per_node:
            pairs = _pairs(held, need)  # [..., m, holder, needer]
            return Side(pairs.sum(axis=-1) - own, pairs.sum(axis=-2) - own)
        sides = []
        node = same_node(workers, self._cluster)  # v is 1
        for others_need in (True, False):
            others = (
                _places(self._need, consumers, node) if others_need else _places(self._held, producers, node)
            )
            pairs = _pairs(held, others) if others_need else _pairs(others, need)
            sides.append(pairs.sum(axis=-1 if others_need else -2) - own)
        return Side(*sides)


def _places(partition: Partition, layouts: Ints, workers: Ints) -> Places:
    if workers.size < MANY or layouts.size == 1:
        return partition.places(layouts, workers)
    different, rows = np.unique(layouts, return_inverse=True)
    return partition.places(different, workers).take(rows.reshape(layouts.shape))


def _wide(of_layouts: Floats) -> Floats:
    return of_layouts[..., None, None]


def _common(held: Places, need: Places, d: int) -> Floats:
    """Return the common positions in dim d of what every worker holds with what it needs."""
    stop, start = np.minimum(held.stops[d], need.stops[d]), np.maximum(held.starts[d], need.starts[d])
    result: Floats = np.maximum(stop - start, 0.0)
    return result


def _pairs(held: Places, need: Places) -> Floats:
    """Return the elements of each holder that each worker of its row needs [..., m, holder, needer]."""
    result = (held.there[..., :, None] & need.there[..., None, :]).astype(np.float64)
    stop, start = np.empty_like(result), np.empty_like(result)  # fresh memory costs more than the arithmetic
    for d in range(len(held.starts)):
        np.minimum(held.stops[d][..., :, None], need.stops[d][..., None, :], out=stop)
        np.maximum(held.starts[d][..., :, None], need.starts[d][..., None, :], out=start)
        np.subtract(stop, start, out=stop)
        np.maximum(stop, 0.0, out=stop)
        result *= stop
    return result


@dataclass(frozen=True, eq=False)
class SyncVolume:
    """Elements of summing a tensor in levels [l, m, v]. Gathering it moves the same number."""

    within: Side
    """Elements that stay in the node."""
    between: Side
    """Elements that cross nodes."""
    shard: Ints
    """Elements that the worker updates."""
    added: Ints
    """Elements that it adds to its own."""


@dataclass(frozen=True, eq=False)
class Holders:
    """Who else holds the box of an op's parameters that each worker holds [l, m, v]."""

    there: Bools
    """Whether the worker holds one; elsewhere the counts are 1."""
    nodes: Ints
    """Nodes with workers that hold the same box."""
    near: Ints
    """Workers of its own node that do, with itself."""

    @staticmethod
    def of(grids: Grids, workers: Ints, cluster: Cluster) -> Holders:
        """Return the holders of the boxes of workers [m, v]."""
        node = np.array(cluster.hosts)
        everyone = box_numbers(grids, np.arange(len(node))[None])[:, 0]  # [l, w]
        own, rows = everyone[:, workers], np.arange(len(everyone))[:, None]
        # Of every box, the nodes that hold it: the different pairs of box and node.
        pairs = np.sort(everyone * cluster.nodes + node, axis=1)
        different = np.diff(pairs, axis=1, prepend=-1) > 0
        held = np.where(pairs >= 0, pairs // cluster.nodes, -1)
        counts = np.zeros((len(everyone), int(everyone.max()) + 2), dtype=np.int64)  # the last: of no box
        np.add.at(counts, (np.broadcast_to(rows, held.shape)[different], held[different]), 1)
        near = np.zeros_like(own)
        for other in range(cluster.workers_per_node):
            mates = np.array(
                [cluster.workers_of(n)[other % size] for n, size in enumerate(cluster.node_sizes)]
            )
            there = np.array(cluster.node_sizes) > other
            near += (own == everyone[:, mates[node[workers]]]) & there[node[workers]]
        there = own >= 0
        return Holders(there, np.where(there, counts[rows[..., None], own], 1), np.where(there, near, 1))


def sync_volume(holders: Holders, elements: Ints) -> SyncVolume:
    """Return what workers send to sum a tensor in levels (`program.levels`).

    `elements` is the size of each worker's box [l, m, v]. If the workers of H nodes hold the same box of
    B elements, m of them on the worker's own node, then it

        sends (m − 1) / m · B and receives as much inside the node,
        sends (H − 1) / (H · m) · B and receives as much between nodes, and updates B / (H · m).

    With m = 1 or H = 1 these are the bytes of the flat sum.
    """
    nodes, near = holders.nodes, holders.near
    shard = -(-elements // (nodes * near))
    within = np.where(holders.there, -(-(near - 1) * elements // near), 0).astype(np.float64)
    between = np.where(holders.there, -(-(nodes - 1) * elements // (nodes * near)), 0).astype(np.float64)
    return SyncVolume(Side(within, within), Side(between, between), shard, (nodes * near - 1) * shard)


def ring_volume(holders: Holders, sharing: Ints, elements: Ints) -> SyncVolume:
    """Return what workers send in a reduce-scatter over rings through all workers that hold the same box.

    `elements` and `sharing` are the size of each worker's box and the number K of workers that hold it
    [l, m, v]. A worker sends (K − 1) / K · B to the next one. A ring leaves every node once. With a ring for
    each of the m workers of a node, which leaves it there, the worker sends 1 / m of its bytes between nodes.
    """
    nodes, near, there = holders.nodes, holders.near, holders.there
    sent = np.where(there, (sharing - 1) * elements / sharing, 0.0)
    between = np.where(nodes > 1, sent / near, 0.0)
    within = sent - between
    shard = -(-elements // sharing)
    return SyncVolume(Side(within, within), Side(between, between), shard, np.zeros_like(shard))


def sharing_of(grids: Grids, workers: Ints, cluster: Cluster) -> Ints:
    """Return how many workers hold the box of each of workers [m, v], itself included [l, m, v]; 1 for none."""
    everyone = box_numbers(grids, np.arange(cluster.workers)[None])[:, 0]  # [l, w]
    rows = np.arange(len(everyone))[:, None]
    counts = np.zeros((len(everyone), int(everyone.max()) + 2), dtype=np.int64)  # the last: of no box
    np.add.at(counts, (np.broadcast_to(rows, everyone.shape), everyone), 1)
    own = everyone[:, workers]
    return np.where(own >= 0, counts[rows[..., None], own], 1)


def box_numbers(grids: Grids, workers: Ints) -> Ints:
    """Return which box of an op's parameters workers [m, v] hold, numbered along c and k [l, m, v].

    −1: none.
    """
    _, c, k, h, w = (column[:, None, None] for column in grids.degrees.T)
    parts = grids.parts[:, workers]
    return np.where(parts >= 0, parts // (h * w) % (c * k), -1)
