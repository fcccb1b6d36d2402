"""The cost model: times and memory of a plan's parts on a cluster.

    compute(o)     forward, backward = max over o's parts of the cluster's compute times, divided by
                   the speeds of their workers and prolonged by the contention of o's own workers
                   where they share cores
    accumulate(o)  adding a micro-batch's gradients to those of the micro-batches before it
    traffic(e)     forward and backward seconds of an exchange: `communication_cost`
    sync(o)        seconds to sum gradients, update and gather parameters: `communication_cost`
    memory(o)      weights, gradients, momentum, received gradients and saved activations, as in
                   `program.required_memory`

A cost depends only on the op or edge, its layouts and the number of samples, and is memoised by
these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from parallel.cluster import Cluster
from parallel.config import require
from parallel.graph import Graph
from parallel.graph.box import Cut
from parallel.graph.ops import Op, Part
from parallel.plans import Layout
from parallel.program.precision import ACTIVATION_BYTES, WEIGHT_BYTES
from parallel.simulator.communication_cost import (
    CommunicationCost,
    Exchanges,
    SyncSeconds,
    parameter_elements,
    sync_seconds,
)
from parallel.simulator.communication_volume import by_node
from parallel.simulator.partition import Floats, Grids, Ints, Partition, PartKinds, PartSizes

ONE = np.zeros(1, dtype=np.int64)
"""Index of the layout in a query about a single layout."""


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
        require(
            precision in cluster.compute.precisions(),
            "trainer.precision",
            precision,
            f"has no times in cluster {cluster.name}; it has {', '.join(cluster.compute.precisions())}",
        )
        self.graph, self.batch_size, self.cluster, self.precision = graph, batch_size, cluster, precision
        self._activation, self._weight = ACTIVATION_BYTES[precision], WEIGHT_BYTES[precision]
        self._trained = graph.trained_ops
        self.communication = CommunicationCost(cluster, precision)
        self.everyone = by_node(cluster.workers, cluster)
        """All workers [node, worker of the node]."""
        self._node = np.repeat(np.arange(cluster.nodes), cluster.node_sizes)
        self._speeds = np.array(cluster.speeds)
        self._sizes = {op.name: PartSizes(op) for op in graph}
        self._kinds: dict[tuple[str, tuple[Cut, ...], tuple[int, ...]], tuple[PartKinds, Floats]] = {}
        self._partitions: dict[tuple[str, Layout, int, int | None], Partition] = {}
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
        of_parts = seconds[kinds.of]
        return of_parts / self._speeds[list(layout.on), None] if self.cluster.speeds else of_parts

    def processor_sharing(self, seconds: np.ndarray, layout: Layout, computing: float = 0.0) -> np.ndarray:
        """Return when the layout's workers finish if they start at once and share cores [p, …].

        `seconds` [p, …] are the times without contention. A worker that finishes leaves its share
        of the cores to the others. If `computing` is more than the layout's workers on a node, the
        difference is workers of other ops, which compute all the time.
        """
        cluster = self.cluster
        if not cluster.core_contention:
            return seconds
        node, ended = self._node[list(layout.on)], np.empty_like(seconds)
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

    def part_kept(self, op: Op, layout: Layout, rows: Sequence[int]) -> np.ndarray:
        """Return the bytes that the forward pass of each part saves for backward [p]."""
        kinds, _ = self._timed_kinds(op, layout, rows)
        return np.array([op.kept_bytes(part, self._activation) for part in kinds.parts])[kinds.of]

    def _timed_kinds(self, op: Op, layout: Layout, rows: Sequence[int]) -> tuple[PartKinds, Floats]:
        key = op.name, layout.cuts, tuple(rows)
        if key not in self._kinds:
            kinds = self._sizes[op.name].kinds(layout.cuts, rows)
            self._kinds[key] = kinds, np.array([self.part_s(op, part) for part in kinds.parts])
        return self._kinds[key]

    def part_s(self, op: Op, part: Part) -> tuple[float, float]:
        """Return forward and backward seconds of one part that waits for no other worker's core."""
        compute = self.cluster.compute
        forward_s = compute.forward_s(op, part, self.precision)
        if op.name not in self._trained:
            return forward_s, 0.0
        gradient = any(producer in self._trained for producer in op.inputs)
        return forward_s, compute.backward_s(op, part, self.precision, gradient)

    def least_compute_s(self, op: Op, cuts: Sequence[Cut], samples: int) -> tuple[float, float]:
        """Return lower bounds of `compute` for a layout with these cuts: the times of one large part.

        The workers must not differ in speed.
        """
        alone = self.cluster.contention_factor(1)
        forward_s, backward_s = self.part_s(op, self._sizes[op.name].largest(cuts, samples))
        return alone * forward_s, alone * backward_s

    def accumulate(self, op: Op, layout: Layout) -> float:
        """Return the seconds of adding a micro-batch's gradients to those of the micro-batches before."""
        tensors = parameter_elements(op, Grids.of([layout], self.cluster.workers))
        if not tensors:
            return 0.0
        elements = np.sum([boxes for (boxes,) in tensors], axis=0)
        if not self.cluster.speeds:
            most = int(elements.max())
            return self.cluster.compute.add_s(most, self.precision) if most else 0.0
        add_s = [
            self.cluster.compute.add_s(int(count), self.precision) if count else 0.0 for count in elements
        ]
        seconds = np.array(add_s)[self._box_of_part(layout)] / self._speeds[list(layout.on)]
        return float(seconds.max())

    def exchange(
        self, producer: Op, layout: Layout, consumer: Op, consumer_layout: Layout, which: int, samples: int
    ) -> tuple[float, float]:
        """Return forward and backward seconds of bringing `producer` to input `which` of `consumer`.

        (0, 0) if nothing moves.
        """
        traffic = self.traffic(producer, layout, consumer, consumer_layout, which, samples)
        return traffic.forward_s, traffic.backward_s

    def traffic(
        self, producer: Op, layout: Layout, consumer: Op, consumer_layout: Layout, which: int, samples: int
    ) -> Traffic:
        """Return the seconds of `exchange`, with the workers that take part."""
        key = producer.name, layout, consumer.name, consumer_layout, which, samples
        if key not in self._traffic:
            held = self._partition(producer, layout, samples, None)
            need = self._partition(consumer, consumer_layout, samples, which)
            exchanges = Exchanges.over(producer, held, need, self.communication)
            forward_s, backward_s, volume = exchanges.seconds(ONE, ONE, self.everyone, complete=True)
            moves = bool(volume.moving.out.any())
            workers = np.sort(self.everyone[volume.taking_part[0]]) if moves else ONE[:0]
            self._traffic[key] = Traffic(float(forward_s[0]), float(backward_s[0]), tuple(workers.tolist()))
        return self._traffic[key]

    def exchanges(
        self, producer: Op, producers: Grids, consumer: Op, consumers: Grids, which: int, samples: int
    ) -> Exchanges:
        """Return the exchanges of `producer` to input `which` of `consumer`, for many layouts."""
        held, need = (
            Partition(producer, producers, samples, None),
            Partition(consumer, consumers, samples, which),
        )
        return Exchanges.over(producer, held, need, self.communication)

    def _partition(self, op: Op, layout: Layout, samples: int, which: int | None) -> Partition:
        key = op.name, layout, samples, which
        if key not in self._partitions:
            self._partitions[key] = Partition(op, Grids.of([layout], self.cluster.workers), samples, which)
        return self._partitions[key]

    def syncs(self, op: Op, grids: Grids, workers: Ints) -> SyncSeconds:
        """Return the seconds of `sync` for many layouts.

        They are lower bounds unless the workers [m, v] are all workers.
        """
        return sync_seconds(op, grids, workers, self.communication)

    def sync(self, op: Op, layout: Layout) -> Sync:
        """Return seconds to sum the op's gradients, and to update and gather its parameters."""
        key = op.name, layout
        if key not in self._sync:
            grids = Grids.of([layout], self.cluster.workers)
            found = self.syncs(op, grids, self.everyone)
            self._sync[key] = Sync(float(found.sum_s[0]), float(found.update_s[0]), float(found.gather_s[0]))
        return self._sync[key]

    def memory(self, op: Op, layout: Layout, samples: int) -> int:
        """Return the bytes on the worker that needs most.

        Counted are parameters, gradients, momentum, and what one micro-batch saves for backward.
        """
        key = op.name, layout, samples
        if key not in self._memory:
            kinds = self._sizes[op.name].kinds(layout.cuts, layout.samples_by_index(samples))
            holders = layout.parameter_holders
            kept = np.array([op.kept_bytes(part, self._activation) for part in kinds.parts])[kinds.of]
            copied = self._activation < self._weight
            rounded = copied and op.rounds_parameters and holders > 1
            box = self._box_of_part(layout)
            for (boxes,) in parameter_elements(op, Grids.of([layout], self.cluster.workers)):
                elements = boxes[box]
                shards = -(-elements // holders)
                # Momentum and received gradients; a collective receives them in place.
                own = shards if self.cluster.collectives else shards * holders
                # Weights, of which a worker keeps only its shard if it holds them rounded, and their copy.
                kept = kept + (shards if rounded else elements) * self._weight
                kept = kept + elements * (self._activation if copied else 0)
                # Gradients and their send buffers.
                kept = kept + (2 * elements + own) * self._weight
            self._memory[key] = int(kept.max())
        return self._memory[key]

    @staticmethod
    def _box_of_part(layout: Layout) -> Ints:
        """Return which box of the parameters each part holds, numbered along c and k [p]."""
        _, c, k, h, w = layout.degrees
        return np.arange(len(layout.on)) // (h * w) % (c * k)
