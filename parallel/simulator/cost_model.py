"""The cost model: times and memory of a plan's parts on a cluster.

    compute(o)     forward, backward = max over o's parts of the cluster's compute times, prolonged
                   by the contention of o's own workers where they share cores
    accumulate(o)  adding a micro-batch's gradients to those of the micro-batches before it
    exchange(e)    max over levels of the network of link.seconds(load)
                   + max over workers of the time to copy and add pieces;
                   the backward exchange is the transpose: sent and received bytes swap
    sync(o)        for each tensor of B bytes that K workers hold, every worker sends the others
                   their shards: s = min(1, B / BUCKET) · link.seconds(load · max(1, BUCKET / B)) of
                   the slowest level;
                   update u = SGD on the shard + adding K − 1 received shards;
                   gather g = s, or a latency if the weights are in shared memory
    memory(o)      weights, gradients, momentum, received gradients and saved activations, as in
                   `program.required_memory`

BUCKET is `lowering.BUCKET_BYTES`. Smaller tensors share a message, so each is charged its share of a
full bucket, and costs add up however tensors are bucketed. A cost depends only on the op or edge, its
layouts and the number of samples, and is memoised by these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from parallel.cluster import Cluster
from parallel.config import require
from parallel.graph import Graph
from parallel.graph.ops import Op
from parallel.plans import Layout
from parallel.program.lowering import BUCKET_BYTES
from parallel.program.precision import ACTIVATION_BYTES, WEIGHT_BYTES, WIDE_BYTES
from parallel.simulator.communication_volume import Held, Loads, Side, exchange_loads, sum_loads
from parallel.simulator.partition import PartKinds, Spans, part_at, part_kinds, spans_of


@dataclass(frozen=True)
class Sync:
    """Seconds of an op's gradient sum, update and gather. Sum and gather may be 0."""

    sum_s: float
    update_s: float
    gather_s: float


@dataclass(frozen=True)
class Traffic:
    """Seconds of an exchange in each direction, and its workers; none if nothing moves."""

    forward_s: float
    backward_s: float
    workers: tuple[int, ...]


class CostModel:
    """Costs for one graph, global batch size, cluster and precision."""

    def __init__(self, graph: Graph, batch_size: int, cluster: Cluster, precision: str) -> None:
        require(precision in cluster.compute.precisions(), "trainer.precision", precision,
                f"has no times in cluster {cluster.name}; it has {', '.join(cluster.compute.precisions())}")
        self.graph, self.batch_size, self.cluster, self.precision = graph, batch_size, cluster, precision
        self._activation, self._weight = ACTIVATION_BYTES[precision], WEIGHT_BYTES[precision]
        self._trained = graph.trained_ops
        self._kinds: dict[tuple[str, tuple[int, ...], tuple[int, ...]], tuple[PartKinds, np.ndarray]] = {}
        self._spans: dict[tuple[str, tuple[int, ...], int, int | None], Spans] = {}
        self._compute: dict[tuple[str, Layout, int], tuple[float, float]] = {}
        self._traffic: dict[tuple[str, Layout, str, Layout, int, int], Traffic] = {}
        self._sync: dict[tuple[str, Layout], Sync] = {}
        self._memory: dict[tuple[str, Layout, int], int] = {}

    def compute(self, op: Op, layout: Layout, samples: int) -> tuple[float, float]:
        """Return forward and backward seconds of the slowest part of `samples` samples."""
        key = op.name, layout, samples
        if key not in self._compute:
            alone = self.part_seconds(op, layout, layout.samples_by_index(samples))
            forward, backward = self.processor_sharing(alone, layout).max(axis=0).tolist()
            self._compute[key] = forward, backward
        return self._compute[key]

    def part_seconds(self, op: Op, layout: Layout, rows: Sequence[int]) -> np.ndarray:
        """Return forward and backward seconds of each part [p, 2] without contention.

        Parts with index i along n have `rows[i]` samples.
        """
        kinds, seconds = self._timed_kinds(op, layout, rows)
        return seconds[kinds.of]

    def processor_sharing(self, seconds: np.ndarray, layout: Layout, computing: float = 0.0) -> np.ndarray:
        """Return when the layout's workers finish if they start at once and share cores [p, …].

        `seconds` [p, …] are the times without contention. A worker that finishes leaves its share
        of the cores to the others. If `computing` is more than the layout's workers on a node, the
        difference is workers of other ops, which compute all the time.
        """
        cluster = self.cluster
        if not cluster.core_contention:
            return seconds
        node, ended = np.array(layout.on) // cluster.workers_per_node, np.empty_like(seconds)
        for one in set(node.tolist()):
            of = np.flatnonzero(node == one)
            order = np.argsort(seconds[of], axis=0, kind="stable")
            sorted_s = np.take_along_axis(seconds[of], order, axis=0)
            others = max(0.0, computing - len(of))
            factors = np.array([cluster.contention_factor(len(of) - i + others) for i in range(len(of))])
            steps = np.diff(sorted_s, axis=0, prepend=0.0) * factors.reshape(-1, *[1] * (seconds.ndim - 1))
            found = np.empty_like(sorted_s)
            np.put_along_axis(found, order, np.cumsum(steps, axis=0), axis=0)
            ended[of] = found
        return ended

    def contention_factor(self, workers: Sequence[int]) -> float:
        """Return the factor while all these workers compute: that of the fullest node."""
        if not self.cluster.core_contention:
            return 1.0
        node = np.array(workers) // self.cluster.workers_per_node
        return self.cluster.contention_factor(int(np.bincount(node).max()))

    def part_kept(self, op: Op, layout: Layout, rows: Sequence[int]) -> np.ndarray:
        """Return the bytes that the forward pass of each part saves for backward [p]."""
        kinds, _ = self._timed_kinds(op, layout, rows)
        return np.array([op.kept_bytes(part, self._activation) for part in kinds.parts])[kinds.of]

    def _timed_kinds(self, op: Op, layout: Layout, rows: Sequence[int]) -> tuple[PartKinds, np.ndarray]:
        key = op.name, layout.degrees, tuple(rows)
        if key not in self._kinds:
            kinds, compute = part_kinds(op, layout.degrees, rows), self.cluster.compute
            gradient = any(producer in self._trained for producer in op.inputs)
            self._kinds[key] = kinds, np.array([
                (compute.forward_s(op, part, self.precision),
                 compute.backward_s(op, part, self.precision, gradient) if op.name in self._trained else 0.0)
                for part in kinds.parts
            ])
        return self._kinds[key]

    def accumulate(self, op: Op, layout: Layout) -> float:
        """Return the seconds of adding a micro-batch's gradients to the earlier ones."""
        _, _, tensors = self._tensors(op, layout)
        most = int(np.sum(tensors, axis=0).max()) if tensors else 0
        return self.cluster.compute.add_s(most, self.precision) if most else 0.0

    def exchange(self, producer: Op, layout: Layout, consumer: Op, consumer_layout: Layout, which: int, samples: int,
                 ) -> tuple[float, float]:
        """Forward and backward seconds of bringing `producer` to input `which` of `consumer`; (0, 0) when local."""
        traffic = self.traffic(producer, layout, consumer, consumer_layout, which, samples)
        return traffic.forward_s, traffic.backward_s

    def traffic(self, producer: Op, layout: Layout, consumer: Op, consumer_layout: Layout, which: int, samples: int,
                ) -> Traffic:
        """The same, with the workers that take part."""
        key = producer.name, layout, consumer.name, consumer_layout, which, samples
        if key not in self._traffic:
            held = Held(self._boxes(producer, layout, samples, None), np.array(layout.on))
            need = Held(self._boxes(consumer, consumer_layout, samples, which), np.array(consumer_layout.on))
            loads = exchange_loads(held, need, self.cluster)
            self._traffic[key] = self._price(loads, layout.terms(producer) > 1, producer.wide)
        return self._traffic[key]

    def _boxes(self, op: Op, layout: Layout, samples: int, which: int | None) -> Spans:
        key = op.name, layout.degrees, samples, which
        if key not in self._spans:
            self._spans[key] = spans_of(op, layout.degrees, samples, which)
        return self._spans[key]

    def _price(self, loads: Loads, adds: bool, wide: bool) -> Traffic:
        workers = loads.workers
        if not workers:
            return Traffic(0.0, 0.0, ())
        itemsize = WIDE_BYTES if wide else self._activation
        link_s = self._link_s(loads.inside, loads.between, itemsize)  # swapping out and into changes nothing
        packs = not self.cluster.shared_memory or bool(loads.between.out.any())
        forward = self._handling_s(loads.scattered, loads.moving.into, loads.own, loads.wanted, packs, adds)
        backward = self._handling_s(Side(loads.scattered.into, loads.scattered.out), loads.moving.out, loads.own,
                                    loads.held, packs, True)
        crowded = self.contention_factor(workers)
        return Traffic(link_s + forward * crowded, link_s + backward * crowded, workers)

    def _link_s(self, inside: Side, between: Side, itemsize: int, share: float = 1.0) -> float:
        """Of the most loaded level, when messages of these sides make up `share` of all that goes together."""
        cluster, per_node = self.cluster, self.cluster.workers_per_node
        seconds = cluster.inside.seconds(inside.load(cluster.inside, per_node, True) * itemsize / share)
        if cluster.between is not None:
            load = between.load(cluster.between, per_node, False)
            seconds = max(seconds, cluster.between.seconds(load * itemsize / share))
        return share * seconds

    def _handling_s(self, scattered: Side, received: np.ndarray, own: np.ndarray, wanted: np.ndarray, packs: bool,
                    adds: bool) -> float:
        """Of copying and adding pieces, on the worker with most of it."""
        copied, added = handled(scattered.out, scattered.into, received, own, wanted, packs, adds)
        compute, precision = self.cluster.compute, self.precision
        return max((compute.copy_s(c, precision) if c else 0.0) + (compute.add_s(a, precision) if a else 0.0)
                   for c, a in set(zip(copied.tolist(), added.tolist(), strict=True)))

    def sync(self, op: Op, layout: Layout) -> Sync:
        """Seconds of summing the op's gradients, updating and gathering its parameters."""
        key = op.name, layout
        if key not in self._sync:
            self._sync[key] = self._price_sync(op, layout)
        return self._sync[key]

    def _price_sync(self, op: Op, layout: Layout) -> Sync:
        on, group, tensors = self._tensors(op, layout)
        if not tensors:
            return Sync(0.0, 0.0, 0.0)
        cluster, holders, sum_s, gather_s = self.cluster, layout.parameter_holders, 0.0, 0.0
        shards = np.zeros(len(on), dtype=np.int64)
        for numbers in tensors:
            shards += -(-numbers // holders)
            if holders > 1:
                inside, between = sum_loads(group, numbers, on, holders, cluster)
                share = min(1.0, int(numbers.max()) * 4 / BUCKET_BYTES)
                moving_s = self._link_s(inside, between, self._weight, share)
                sum_s += moving_s
                announced = cluster.shared_memory and not between.out.any()
                gather_s += share * cluster.inside.latency_s if announced else moving_s
        compute, shard = cluster.compute, int(shards.max())
        update_s = compute.update_s(shard, self.precision)
        if holders > 1:
            update_s += compute.add_s((holders - 1) * shard, self.precision)
        return Sync(sum_s, update_s * self.contention_factor(layout.on), gather_s)

    def _tensors(self, op: Op, layout: Layout) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Workers, the group of each (those of a group hold the same boxes), and per parameter its numbers by worker.

        A worker that has no part of a parameter, as the bias of a later partial sum, has 0 of it.
        """
        on = np.array(layout.on)
        _, c, k, _, _ = np.unravel_index(np.arange(len(on)), layout.degrees)
        group = c * layout.k + k
        boxes = [op.parameter_boxes(part_at(op, layout.degrees, 1, (i, j, 0, 0)))
                 for i in range(layout.c) for j in range(layout.k)] if op.parameters else []
        return on, group, [np.array([of[name].volume if name in of else 0 for of in boxes])[group]
                           for name in op.parameters]

    def memory(self, op: Op, layout: Layout, samples: int) -> int:
        """Return the bytes on the worker that needs most.

        Counted are parameters, gradients, momentum, and what one micro-batch saves for backward.
        """
        key = op.name, layout, samples
        if key not in self._memory:
            _, _, tensors = self._tensors(op, layout)
            kinds, holders = part_kinds(op, layout.degrees, layout.samples_by_index(samples)), layout.parameter_holders
            kept = np.array([op.kept_bytes(part, self._activation) for part in kinds.parts])[kinds.of]
            copies = self._weight + (self._activation if self._activation < self._weight else 0)
            for numbers in tensors:
                shards = -(-numbers // holders)
                # Weights with their copy; gradients, and once more to be sent; momentum and received gradients.
                kept = kept + numbers * (copies + 2 * self._weight) + shards * holders * self._weight
            self._memory[key] = int(kept.max())
        return self._memory[key]


def handled(scattered_out: np.ndarray, scattered_into: np.ndarray, received: np.ndarray, own: np.ndarray,
            wanted: np.ndarray, packs: bool | np.ndarray, adds: bool | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers that a worker copies and adds in an exchange; of many workers and exchanges where arrays are given.

    Over a network (`packs`) a sender packs pieces that are not contiguous, and whoever receives puts such pieces into
    their places; from shared memory, where the sender has put them, it puts all. And its own one to them; or, where
    pieces overlap (`adds`), it copies one that covers all that is wanted and adds the others.
    """
    receives = received > 0
    base = np.where((received >= wanted) | (own == wanted), wanted, 0) * receives
    placed = np.where(packs, scattered_into, received)
    copied = scattered_out * packs + np.where(adds, base, placed + own * receives)
    return copied, np.where(adds, (received + own) * receives - base, 0)
