"""Seconds of exchanges and gradient syncs, from what every worker sends and receives.

    exchange   max over levels of the network of link.seconds(bytes of the most loaded)
               + max over workers of copying and adding pieces; backward swaps the sides
    sync       per tensor of B bytes that K workers hold, every worker sends the others their shards:
                 sum s    min(1, B / BUCKET) · link.seconds(load · max(1, BUCKET / B)) of the most
                          loaded level
                 gather g s, or a latency where the workers' weights lie in common memory
                 update u SGD on the shard, and adding K − 1 received ones

All of it is computed for many layouts at once, and for the given workers. All workers give the
cost, some of them a lower bound: leaving workers out makes no sum and no maximum larger.

BUCKET is `lowering.BUCKET_BYTES`. Smaller tensors share a message, so each is charged its share of
the cost of a full bucket: costs then add up whatever the buckets are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from parallel.cluster import Cluster, Link
from parallel.graph.ops import Op
from parallel.program.lowering import BUCKET_BYTES
from parallel.program.precision import ACTIVATION_BYTES, WEIGHT_BYTES, WIDE_BYTES
from parallel.simulator.communication_volume import ExchangeVolume, Side, Volume, box_numbers, sync_sides
from parallel.simulator.partition import Bools, Floats, Grids, Ints, Partition, part_at


class CommunicationCost:
    """Turns elements into seconds on one cluster, in one precision."""

    def __init__(self, cluster: Cluster, precision: str) -> None:
        self.cluster, self.precision = cluster, precision

    def link_s(self, inside: Side, between: Side, itemsize: int, share: Floats | float = 1.0) -> Floats:
        """Return the time of the most loaded level; these messages are `share` of a bucket."""
        seconds = _link_seconds(
            self.cluster.inside, inside.load(self.cluster.inside, True) * itemsize / share
        )
        if self.cluster.between is not None:
            load = between.load(self.cluster.between, False) * itemsize / share
            seconds = np.maximum(seconds, _link_seconds(self.cluster.between, load))
        return share * seconds

    def handling_s(self, copied: Floats, added: Floats) -> Floats:
        """Return the time of copying and adding on the slowest worker, [..., m, v] to [...]."""
        compute, precision = self.cluster.compute, self.precision
        copy_s = _elementwise(lambda count: compute.copy_s(int(count), precision) if count else 0.0, copied)
        add_s = _elementwise(lambda count: compute.add_s(int(count), precision) if count else 0.0, added)
        worst: Floats = (copy_s + add_s).max(axis=(-2, -1))
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
            )
        )
        backward = cost.handling_s(
            *handled(
                volume,
                volume.moving.swapped(),
                volume.scattered.swapped(),
                volume.held,
                packs,
                np.ones((1, 1), dtype=bool),
            )
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


def sync_seconds(op: Op, grids: Grids, workers: Ints, complete: bool, cost: CommunicationCost) -> SyncSeconds:
    """Return the seconds of an op's sync; lower bounds unless workers [m, v] are all (`complete`)."""
    cluster, count = cost.cluster, len(grids.degrees)
    sums, gathers = np.zeros(count), np.zeros(count)
    if not op.parameters:
        return SyncSeconds(sums, np.zeros(count), gathers)
    weight, holders = WEIGHT_BYTES[cost.precision], grids.holders
    shards = np.zeros((count, *workers.shape), dtype=np.int64)
    for elements, largest in _tensors(op, grids, workers):
        shards += -(-elements // holders[:, None, None])
        inside, between = sync_sides(grids, elements, workers, cluster)
        share = np.minimum(1.0, largest * 4 / BUCKET_BYTES)
        moving_s = np.where(holders > 1, cost.link_s(inside, between, weight, share), 0.0)
        sums += moving_s
        announced = cluster.shared_memory & ~between.out.any(axis=(-2, -1)) & (holders > 1)
        # Without all workers, it may be unknown whether the group spans nodes.
        latency_s = share * cluster.inside.latency_s
        gathers += np.where(announced, latency_s if complete else np.minimum(latency_s, moving_s), moving_s)
    compute, shard = cluster.compute, shards.max(axis=(-2, -1))
    updates = _elementwise(lambda size: compute.update_s(int(size), cost.precision), shard)
    received = np.where(holders > 1, (holders - 1) * shard, 0)
    updates += _elementwise(lambda size: compute.add_s(int(size), cost.precision) if size else 0.0, received)
    return SyncSeconds(sums, updates * cost.contention_factor(grids.parts[:, workers] >= 0), gathers)


def parameter_elements(op: Op, grids: Grids) -> list[list[Ints]]:
    """Return, by parameter and layout, the elements in each of its boxes, numbered along c and k.

    0 where a part has none of the parameter, such as the bias in all partial sums but the first.
    """
    kinds: dict[tuple[int, int], list[Ints]] = {}
    for c, k in set(map(tuple, grids.degrees[:, 1:3].tolist())):
        boxes = [
            op.parameter_boxes(part_at(op, (1, c, k, 1, 1), 1, (i, j, 0, 0)))
            for i in range(c)
            for j in range(k)
        ]
        kinds[c, k] = [
            np.array([of[name].volume if name in of else 0 for of in boxes]) for name in op.parameters
        ]
    return [[kinds[c, k][i] for c, k in grids.degrees[:, 1:3].tolist()] for i in range(len(op.parameters))]


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
