"""Simulate a step of engines that replicate the whole model: torch's DistributedDataParallel.

Every worker holds all weights and computes an equal part of the batch. With the clocks of `clocks`:

    F(o)  forward of op o, in graph order                                  `_Simulation._pass`
    B(o)  backward of o, in reverse order; its gradients are then scaled   `_Simulation._pass`
          into their bucket, which costs a copy of them
    A(b)  all-reduce of bucket b: after B of all ops that have gradients   `_Simulation._sum`
          in it, and after A(b − 1)
    U     update of all parameters by every worker, after all A(b)         `_Simulation.run`

Buckets hold gradients in the order in which backward computes them. As in torch, a bucket is full as
soon as its gradients have `bucket_bytes`, the first one with `first_bucket_bytes` (`buckets_of`).

The time of an all-reduce of B bytes among K workers is that of the backend, if it was measured
(`Cluster.all_reduce`). Otherwise it is computed from the links (`all_reduce_s`):

    ring           every worker sends 2 (K − 1) / K · B to the next one (Patarasuk and Yuan 2009)
    hierarchical   among the m workers of each host as a ring, then among the H hosts: 2 (H − 1) / H · B
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from parallel.cluster import Cluster, Link
from parallel.graph import Graph
from parallel.graph.ops import Op
from parallel.plans import Layout, make_plan
from parallel.program.lowering import lower
from parallel.program.precision import WEIGHT_BYTES
from parallel.program.required_memory import memory_of
from parallel.simulator.clocks import Clocks, WorkerGroup
from parallel.simulator.cost_model import CostModel
from parallel.simulator.timeline import Event, Timeline


@dataclass(frozen=True)
class Replicated:
    """How an engine replicates the model."""

    bucket_bytes: int
    """Size from which a bucket is full."""
    first_bucket_bytes: int | None = None
    """Size from which the first bucket is. None: the same."""
    hierarchical: bool = False
    """Whether the backend also knows an all-reduce in levels, within hosts and between them, and
    takes the faster one."""


@dataclass(frozen=True, eq=False)
class ReplicatedTimeline(Timeline):
    """A simulated step of replicated models. Its program is the data-parallel plan, whose parts of the
    batch it computes."""

    def _copies(self, event: Event) -> bool:
        return False  # the backend's threads copy, while the worker waits

    @cached_property
    def peak_memory(self) -> tuple[int, ...]:
        """Bytes that each worker needs: as the data-parallel plan, but every worker keeps the momentum
        of all parameters, and receives gradients in place."""
        whole = self.program.graph.parameter_count * WEIGHT_BYTES[self.precision]
        memory = [memory_of(self.program, worker, self.precision) for worker in range(self.workers)]
        return tuple(of.total - of.momentum - of.received + whole for of in memory)


def buckets_of(graph: Graph, engine: Replicated, itemsize: int) -> list[tuple[tuple[str, ...], int]]:
    """Return the ops with gradients in each bucket, and its bytes, in the order of backward."""
    limit = engine.first_bucket_bytes or engine.bucket_bytes
    buckets: list[tuple[tuple[str, ...], int]] = []
    names: list[str] = []
    filled = 0
    for op in reversed(graph.ops):
        for elements in reversed([elements_of(op, name) for name in op.parameters]):
            names = [*names, op.name] if op.name not in names else names
            filled += elements * itemsize
            if filled >= limit:
                buckets.append((tuple(names), filled))
                names, filled, limit = [], 0, engine.bucket_bytes
    return [*buckets, (tuple(names), filled)] if filled else buckets


def elements_of(op: Op, name: str) -> int:
    """Return the elements of a parameter."""
    count = 1
    for extent in op.parameters[name]:
        count *= extent
    return count


def all_reduce_s(nbytes: float, workers: int, cluster: Cluster, hierarchical: bool = False) -> float:
    """Return the seconds in which `workers` workers of a cluster sum a tensor of `nbytes` bytes."""
    if workers == 1 or nbytes <= 0:
        return 0.0
    if cluster.all_reduce is not None and workers == cluster.workers:
        return cluster.all_reduce.link.seconds(nbytes)
    hosts: dict[int, int] = {}
    for worker in range(workers):
        hosts[cluster.node_of(worker)] = hosts.get(cluster.node_of(worker), 0) + 1
    most = max(hosts.values())
    sent = 2 * (workers - 1) / workers * nbytes
    near_s = _ring_s(cluster.inside, sent, most) if most > 1 else 0.0
    if len(hosts) == 1 or cluster.between is None:
        return near_s
    ring_s = max(near_s, cluster.between.seconds(sent))  # a ring enters and leaves every host once
    if not hierarchical:
        return ring_s
    within_s = _ring_s(cluster.inside, 2 * (most - 1) / most * nbytes, most) if most > 1 else 0.0
    across = 2 * (len(hosts) - 1) / len(hosts) * nbytes
    return min(ring_s, within_s + cluster.between.seconds(across))


def _ring_s(link: Link, sent: float, workers: int) -> float:
    """Return the seconds in which each of a node's workers sends `sent` bytes to the next one."""
    return link.seconds(sent * workers if link.shared else sent)


def simulate_replicated(
    graph: Graph, batch_size: int, workers: int, cluster: Cluster, precision: str, engine: Replicated
) -> Timeline:
    """Return the timeline of a step of `workers` workers of a cluster that has enough."""
    return _Simulation(graph, batch_size, workers, cluster, precision, engine).run()


class _Simulation:
    """One simulation: the clocks and the events so far."""

    def __init__(
        self,
        graph: Graph,
        batch_size: int,
        workers: int,
        cluster: Cluster,
        precision: str,
        engine: Replicated,
    ) -> None:
        self.graph, self.cluster, self.precision, self.engine = graph, cluster, precision, engine
        self.layout = Layout(on=tuple(range(workers)), n=workers)
        plan = make_plan(graph, workers, {op.name: self.layout for op in graph})
        self.program = lower(graph, plan, batch_size, cluster.hosts)
        self.cost_model = CostModel(graph, batch_size, cluster, precision)
        self.slowdown = cluster.overlap_slowdown
        if cluster.all_reduce is not None:
            self.slowdown = cluster.all_reduce.overlap_slowdown
        self.clocks, self.group = Clocks(workers, self.slowdown), WorkerGroup(self.layout.on)
        self.events: list[Event] = []

    def run(self) -> Timeline:
        """Visit all passes, sums and the update."""
        for op in self.graph:
            self._pass("forward", op)
        itemsize, ended = WEIGHT_BYTES[self.precision], dict[str, float]()
        waiting = buckets_of(self.graph, self.engine, itemsize)
        summed = 0.0
        for op in reversed(self.graph.ops):
            ended[op.name] = self._pass("backward", op)
            while waiting and set(waiting[0][0]) <= set(ended):
                names, nbytes = waiting.pop(0)
                summed = self._sum(names, nbytes, max(ended[name] for name in names))
        update_s = self._compute(self.cluster.compute.update_s(self.graph.parameter_count, self.precision))
        start = max(summed, self.group.latest(self.clocks.compute))
        end = self.clocks.work(self.group, summed, update_s)
        self.events.append(Event("update", "all parameters", None, self.layout.on, start, end, None))
        return ReplicatedTimeline(
            self.program, self.cluster, self.precision, tuple(self.events), self.clocks.end
        )

    def _pass(self, kind: str, op: Op) -> float:
        """Compute a pass of an op on all workers; return its end."""
        samples = self.layout.samples_by_index(self.program.batch_size)
        own = self.cost_model.part_seconds(op, self.layout, samples)[:, int(kind == "backward")]
        own = self.cost_model.processor_sharing(own, self.layout)
        if kind == "backward" and len(self.layout.on) > 1:
            gradients = sum(elements_of(op, name) for name in op.parameters)
            own = own + self._compute(self.cluster.compute.copy_s(gradients, self.precision))
        start = self.group.latest(self.clocks.compute)
        end = self.clocks.work(self.group, 0.0, float(own.max()))
        kept = self.cost_model.part_kept(op, self.layout, samples)
        kept = -kept if kind == "backward" else kept
        self.events.append(Event(kind, op.name, None, self.layout.on, start, end, own, kept))
        return end

    def _sum(self, names: Sequence[str], nbytes: int, ready: float) -> float:
        """All-reduce a bucket; return its end."""
        workers = len(self.layout.on)
        seconds = all_reduce_s(nbytes, workers, self.cluster, self.engine.hierarchical)
        if seconds == 0:
            return ready
        start = max(ready, self.group.latest(self.clocks.network))
        end = self.clocks.message(self.group, ready, seconds)
        name = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
        self.events.append(Event("sum", name, None, self.layout.on, start, end, None))
        return end

    def _compute(self, seconds: float) -> float:
        """Return the time of work that all workers do at once, on the slowest of them."""
        speeds = self.cluster.speeds[: len(self.layout.on)]
        busiest = max(
            sum(self.cluster.node_of(worker) == node for worker in self.layout.on)
            for node in range(self.cluster.nodes)
        )
        return seconds * self.cluster.contention_factor(busiest) / min(speeds, default=1.0)
