"""Seconds of exchanges and gradient syncs, from what every worker sends and receives.

    exchange   max over levels of the network of link.seconds(bytes of the most loaded)
               + max over workers of copying and adding pieces; backward swaps the sides
    sync       per tensor of B bytes that several workers hold, in levels (`program.levels`):
                 sum s    min(1, B / BUCKET) · link.seconds(load · max(1, BUCKET / B)), of the level
                          inside nodes plus that between nodes: one starts when the other is complete
                 gather g the same for the weights, which are sent rounded where they are read so
                          (`Op.rounds_parameters`); with a latency for the level inside nodes where
                          the workers' weights lie in common memory
                 update u SGD on the shard, and adding what is received
    sync       by collectives (`Cluster.collectives`): a reduce-scatter and an all-gather, each over rings
               (Thakur et al. 2005), with one latency for each, since `Link.latency_s` is that of a whole
               exchange: r, r' = max over levels of min(1, B / BUCKET) · link.seconds(load · max(1, BUCKET / B)),
               of the gradients and of the weights.
               The communicator runs sum, gather and the sum of the next bucket one after the other, and
               the update between them is on a stream of its own: all of it is one message beside backward.
                 sum s    r + SGD on the shard + r'
                 update u copying the gradients to the bucket, which the compute stream does
                 gather g 0

All of it is computed for many layouts at once, and for the given workers. All workers give the
cost, some of them a lower bound: leaving workers out makes no sum and no maximum larger.

BUCKET is `lowering.BUCKET_BYTES`, or `lowering.COLLECTIVE_BYTES` with collectives. Smaller tensors share a
message, so each is charged its share of the cost of a full bucket: costs then add up whatever the buckets
are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from parallel.cluster import Cluster, Link
from parallel.graph.box import degree
from parallel.graph.ops import Op
from parallel.program.lowering import BUCKET_BYTES, COLLECTIVE_BYTES
from parallel.program.precision import ACTIVATION_BYTES, SYNC_BYTES, WEIGHT_BYTES, WIDE_BYTES
from parallel.simulator.communication_volume import (
    ExchangeVolume,
    Holders,
    Side,
    Volume,
    box_numbers,
    ring_volume,
    sharing_of,
    sync_volume,
)
from parallel.simulator.partition import Bools, Floats, Grids, Ints, Partition, part_at


class CommunicationCost:
    """Turns elements into seconds on one cluster, in one precision."""

    def __init__(self, cluster: Cluster, precision: str) -> None:
        self.cluster, self.precision = cluster, precision

    def link_s(self, inside: Side, between: Side, itemsize: int) -> Floats:
        """Return the time of the most loaded level."""
        return np.maximum(*self.level_s(inside, between, itemsize))

    def level_s(
        self, inside: Side, between: Side, itemsize: int, share: Floats | float = 1.0
    ) -> tuple[Floats, Floats]:
        """Return the times inside nodes and between them; these messages are `share` of a bucket."""
        near, far = self.cluster.inside, self.cluster.between
        near_s = share * _link_seconds(near, inside.load(near, True) * itemsize / share)
        if far is None:
            return near_s, np.zeros_like(near_s)
        return near_s, share * _link_seconds(far, between.load(far, False) * itemsize / share)

    @cached_property
    def _speeds(self) -> Floats:
        """Speeds of all workers; that of no worker, with index −1, is 1."""
        return np.array([*self.cluster.speeds, 1.0])

    def slowed(self, seconds: Floats, workers: Ints) -> Floats:
        """Return the computing times of workers [m, v] from those at speed 1 [..., m, v]."""
        return seconds / self._speeds[workers] if self.cluster.speeds else seconds

    def handling_s(self, copied: Floats, added: Floats, workers: Ints) -> Floats:
        """Return the time of copying and adding on the slowest of workers [m, v], [..., m, v] to [...]."""
        compute, precision = self.cluster.compute, self.precision
        copy_s = _elementwise(lambda count: compute.copy_s(int(count), precision) if count else 0.0, copied)
        add_s = _elementwise(lambda count: compute.add_s(int(count), precision) if count else 0.0, added)
        worst: Floats = self.slowed(copy_s + add_s, workers).max(axis=(-2, -1))
        return worst

    def contention_factor(self, computing: Bools) -> Floats:
        """Return by what factor computing slows down while these workers compute [..., m, v]."""
        if not self.cluster.core_contention:
            return np.ones(computing.shape[:-2])
        return _elementwise(self.cluster.contention_factor, computing.sum(axis=-1).max(axis=-1))


@dataclass(frozen=True, eq=False)
class Exchanges:
    """The exchanges over one edge of the graph, between layouts of its producer and of its consumer."""

    volume: ExchangeVolume
    adds: Bools
    """Whether the producer's layout gives partial sums [p]."""
    itemsize: int
    cost: CommunicationCost

    @staticmethod
    def over(producer: Op, held: Partition, need: Partition, cost: CommunicationCost) -> Exchanges:
        """Return the exchanges from the boxes that `producer` computes to those that are needed."""
        summed = ["nckhw".index(dim) for dim in producer.sums_over]
        return Exchanges(
            ExchangeVolume(held, need, cost.cluster),
            held.grids.degrees[:, summed].prod(axis=1) > 1,
            WIDE_BYTES if producer.wide else ACTIVATION_BYTES[cost.precision],
            cost,
        )

    def seconds(
        self, producers: Ints, consumers: Ints, workers: Ints, complete: bool
    ) -> tuple[Floats, Floats, Volume]:
        """Return forward and backward seconds between layouts, and the volume.

        The layouts are two arrays of indices that broadcast. `workers` [m, v]: each row of one node.
        Unless they are all workers (`complete`), the seconds are lower bounds.
        """
        cost, cluster = self.cost, self.cost.cluster
        # Which workers pack depends on all of them; for a single worker the link's time dominates.
        handles = complete or not (cluster.shared_memory or workers.size == 1)
        volume = self.volume.between(producers, consumers, workers, handles)
        link_s = cost.link_s(volume.inside, volume.between, self.itemsize)  # swapping sides changes nothing
        if volume.scattered is None:
            return link_s, link_s, volume
        far: Bools = np.any(volume.between.out, axis=(-2, -1))
        packs = far[..., None, None] | (not cluster.shared_memory)
        moves, crowded = link_s > 0, cost.contention_factor(volume.taking_part)
        forward = cost.handling_s(
            *handled(
                volume,
                volume.moving,
                volume.scattered,
                volume.wanted,
                packs,
                self.adds[producers][..., None, None],
            ),
            workers,
        )
        backward = cost.handling_s(
            *handled(
                volume,
                volume.moving.swapped(),
                volume.scattered.swapped(),
                volume.held,
                packs,
                np.ones((1, 1), dtype=bool),
            ),
            workers,
        )
        return (
            np.where(moves, link_s + forward * crowded, 0.0),
            np.where(moves, link_s + backward * crowded, 0.0),
            volume,
        )


def handled(
    volume: Volume, moving: Side, scattered: Side, wanted: Floats, packs: Bools, adds: Bools
) -> tuple[Floats, Floats]:
    """Return the elements that workers copy and add in an exchange.

    Over a network (`packs`), the sender packs pieces that are not contiguous, and the receiver copies
    such pieces to their places. From shared memory, the receiver copies all pieces. A receiver also
    copies its own piece. Where pieces overlap (`adds`), it copies one that covers the box, if there
    is one, and adds the others.
    """
    received, own = moving.into, volume.own
    receives = received > 0
    base = np.where((received >= wanted) | (own == wanted), wanted, 0.0) * receives
    placed = np.where(packs, scattered.into, received)
    copied = scattered.out * packs + np.where(adds, base, placed + own * receives)
    return copied, np.where(adds, (received + own) * receives - base, 0.0)


@dataclass(frozen=True, eq=False)
class SyncSeconds:
    """Seconds of an op's sync [l]. Sum and gather are 0 where no two workers hold the same box."""

    sum_s: Floats
    update_s: Floats
    gather_s: Floats


def sync_seconds(op: Op, grids: Grids, workers: Ints, cost: CommunicationCost) -> SyncSeconds:
    """Return the seconds of an op's sync; lower bounds unless workers [m, v] are all."""
    cluster, count = cost.cluster, len(grids.degrees)
    sums, gathers = np.zeros(count), np.zeros(count)
    if not op.parameters:
        return SyncSeconds(sums, np.zeros(count), gathers)
    weight, gathered = WEIGHT_BYTES[cost.precision], _gather_bytes(op, cost.precision)
    shards, added = (np.zeros((count, *workers.shape), dtype=np.int64) for _ in range(2))
    holders = Holders.of(grids, workers, cluster)
    if cluster.collectives:
        return _collective_seconds(op, grids, workers, cost, holders)
    for elements, largest in _tensors(op, grids, workers):
        volume = sync_volume(holders, elements)
        shards, added = shards + volume.shard, added + volume.added
        share = np.minimum(1.0, largest * SYNC_BYTES / BUCKET_BYTES)
        near_s, far_s = cost.level_s(volume.within, volume.between, weight, share)
        sums += near_s + far_s
        if gathered != weight:
            near_s, far_s = cost.level_s(volume.within, volume.between, gathered, share)
        announced = cluster.shared_memory & volume.within.out.any(axis=(-2, -1))
        gathers += np.where(announced, share * cluster.inside.latency_s, near_s) + far_s
    there = grids.parts[:, workers] >= 0
    if cluster.speeds:  # the slowest is not always the one with the largest shard
        updates = np.where(there, cost.slowed(_update_s(shards, added, cost), workers), 0.0)
        updates = updates.max(axis=(-2, -1))
    else:
        updates = _update_s(shards.max(axis=(-2, -1)), added.max(axis=(-2, -1)), cost)
    return SyncSeconds(sums, updates * cost.contention_factor(there), gathers)


def _collective_seconds(
    op: Op, grids: Grids, workers: Ints, cost: CommunicationCost, holders: Holders
) -> SyncSeconds:
    """Return `sync_seconds` of a cluster whose backend sums by collectives."""
    cluster, count, precision = cost.cluster, len(grids.degrees), cost.precision
    sharing = sharing_of(grids, workers, cluster)
    shared = sharing > 1
    summing, gathering = np.zeros(count), np.zeros(count)
    weight, gathered = WEIGHT_BYTES[precision], _gather_bytes(op, precision)
    shards, copied = (np.zeros((count, *workers.shape), dtype=np.int64) for _ in range(2))
    for elements, largest in _tensors(op, grids, workers):
        volume = ring_volume(holders, sharing, elements)
        share = np.minimum(1.0, largest * SYNC_BYTES / COLLECTIVE_BYTES)
        summing += np.maximum(*cost.level_s(volume.within, volume.between, weight, share))
        gathering += np.maximum(*cost.level_s(volume.within, volume.between, gathered, share))
        shards, copied = shards + volume.shard, copied + elements * shared
    there = grids.parts[:, workers] >= 0
    factor = cost.contention_factor(there)
    none = np.zeros_like(shards)
    update_s = np.where(there, cost.slowed(_update_s(shards, none, cost), workers), 0.0)
    beside = np.where(shared, update_s, 0.0).max(axis=(-2, -1)) * factor
    alone = np.where(shared, 0.0, update_s).max(axis=(-2, -1)) * factor
    sums = np.where(summing > 0, summing + gathering + beside, 0.0)
    return SyncSeconds(sums, alone + cost.handling_s(copied, none, workers) * factor, np.zeros(count))


def _gather_bytes(op: Op, precision: str) -> int:
    """Return the bytes per element of the op's weights that are sent."""
    return ACTIVATION_BYTES[precision] if op.rounds_parameters else WEIGHT_BYTES[precision]


def _update_s(shards: Ints, added: Ints, cost: CommunicationCost) -> Floats:
    """Return the time of updating shards, and of adding the gradients of the other holders."""
    compute, precision = cost.cluster.compute, cost.precision
    updates = _elementwise(lambda size: compute.update_s(int(size), precision), shards)
    return updates + _elementwise(lambda size: compute.add_s(int(size), precision) if size else 0.0, added)


def parameter_elements(op: Op, grids: Grids) -> list[list[Ints]]:
    """Return, by parameter and layout, the elements in each of its boxes, numbered along c and k.

    0 where a part has none of the parameter, such as the bias in all partial sums but the first.
    """
    kinds: dict[tuple[int, int], list[Ints]] = {}
    for c, k in set(map(tuple, grids.codes[:, 1:3].tolist())):
        of_c, of_k = grids.cut_of(c), grids.cut_of(k)
        boxes = [
            op.parameter_boxes(part_at(op, (1, of_c, of_k, 1, 1), 1, (i, j, 0, 0)))
            for i in range(degree(of_c))
            for j in range(degree(of_k))
        ]
        kinds[c, k] = [
            np.array([of[name].volume if name in of else 0 for of in boxes]) for name in op.parameters
        ]
    return [[kinds[c, k][i] for c, k in grids.codes[:, 1:3].tolist()] for i in range(len(op.parameters))]


def _tensors(op: Op, grids: Grids, workers: Ints) -> list[tuple[Ints, Ints]]:
    """Return, by parameter, the elements in each worker's box [l, m, v] and in the largest box [l]."""
    at, result = box_numbers(grids, workers), []
    for boxes in parameter_elements(op, grids):
        first = np.cumsum([0, *map(len, boxes)])[:-1]
        elements = np.concatenate(boxes)[first[:, None, None] + np.maximum(at, 0)]
        result.append((np.where(at >= 0, elements, 0), np.array([box.max() for box in boxes])))
    return result


def _link_seconds(link: Link, nbytes: Floats) -> Floats:
    """Return `Link.seconds` of every load."""
    if len(link.bandwidth) > 1:
        return _elementwise(link.seconds, nbytes)
    return np.where(nbytes > 0, link.latency_s + nbytes / link.bandwidth[0][1], 0.0)


def _elementwise(function: Callable[[float], float], values: Floats | Ints) -> Floats:
    """Return a function of every element."""
    if not values.any():
        return np.full(values.shape, function(0))
    different, at = np.unique(values, return_inverse=True)
    return np.array([function(value) for value in different.tolist()])[at].reshape(values.shape)
