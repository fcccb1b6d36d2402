"""Simulate a program: visit its tasks in order and advance the workers' clocks (`clocks`).

Tasks of op o, micro-batch m and edge e = (producer p, consumer o), with their durations from the
cost model:

    F(o, m)   forward, duration f, on o's workers. Starts when the exchanges of o's inputs have
              arrived and, if every pass updates, when o's parameters have been gathered.
    X(e, m)   exchange, duration x, among the workers that hold or need a part. Starts after
              F(p, m); takes no time if nothing moves.
    B(o, m)   backward, duration b. Starts when the exchanges X'(e, m) of o's outgoing edges have
              arrived.
    X'(e, m)  transposed exchange. Starts after B(o, m). If e joins stages of a pipeline on different
              nodes, exchanges in both directions pass at the same time.
    S(o)      gradient sum, duration s, among o's workers if several hold the same parameters.
              Starts after the last B(o, m) and goes before X'.
    U(o)      update, duration u. Starts after S(o). All updates follow all backward tasks, in the
              same order; if every pass updates, they follow the backward tasks of their pass.
    G(o)      gather of the updated parameters, duration g. Starts after U(o).

    step time = latest clock + step overhead

Core contention (`Cluster.core_contention`): f and b assume that only the op's own workers share the
cores of a node. In a pipeline the workers of other stages compute, too; there the factor is that of
the average number of computing workers, taken from the previous simulation of the same program
(`CONTENTION_ROUNDS`).

The ops of a segment are visited one after the other, forward in graph order and backward in
reverse. Ops of merged segments (schemes b and c) compute all micro-batches at once; there X(e, m +
1) starts when its consumer starts pass m. The runtime joins small tensors in buckets and starts
exchanges at the end of a segment; the simulator treats each op by itself. The time of a plan with
one micro-batch is therefore a recurrence over its ops (`recurrence`), on which the searches rely.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from parallel.cluster import Cluster
from parallel.config import require
from parallel.graph import Edge, Graph
from parallel.graph.ops import Op
from parallel.plans import Layout, Plan
from parallel.program import Program
from parallel.program.lowering import lower
from parallel.program.schedule import Task
from parallel.simulator.clocks import Clocks, Groups, TwoWayClocks
from parallel.simulator.cost_model import CostModel
from parallel.simulator.timeline import Event, Timeline

CONTENTION_ROUNDS = 3
"""Times that a pipeline on shared cores is simulated again with the contention of the last."""


def simulate(
    program: Program, cluster: Cluster, precision: str, cost_model: CostModel | None = None
) -> Timeline:
    """Return the timeline of a step.

    Simulations of the same graph, batch size, cluster and precision may share a `cost_model`, which
    memoises.
    """
    require_room(program.plan.workers, cluster)
    if cost_model is None:
        cost_model = CostModel(program.graph, program.batch_size, cluster, precision)
    timeline = _Simulation(program, cost_model, None).run()
    if program.plan.micro_batches > 1 and cluster.core_contention:
        # Contention changes durations, and durations change who computes at the same time.
        for _ in range(CONTENTION_ROUNDS):
            timeline = _Simulation(program, cost_model, timeline.mean_computing).run()
    return timeline


def lower_on(
    cluster: Cluster, graph: Graph, plan: Plan, batch_size: int, hosts: Sequence[int] | None = None
) -> Program:
    """Return the program that the runtime runs on the cluster. Raises `ValueError` as `lower`.

    `hosts`: host of each worker, if the run's are known; None: those of the cluster.
    """
    own = cluster.hosts if hosts is None else hosts
    return lower(graph, plan, batch_size, own, collectives=cluster.collectives)


def require_room(workers: int, cluster: Cluster) -> None:
    """Raise `ValueError` if the cluster has too few workers."""
    require(
        workers <= cluster.workers,
        "workers",
        workers,
        f"is more than the {cluster.workers} of cluster {cluster.name}",
    )


class _Simulation:
    """One simulation: clocks, events, and ends of exchanges, sums and gathers."""

    def __init__(self, program: Program, cost_model: CostModel, mean_computing: np.ndarray | None) -> None:
        """With `mean_computing` None, only the workers of the same op compute."""
        self.program, self.cost_model = program, cost_model
        self.plan, self.graph = program.plan, program.graph
        self.mean_computing = mean_computing
        self.samples = program.batch_size // program.plan.micro_batches
        clocks = TwoWayClocks if program.plan.micro_batches > 1 else Clocks
        self.clocks = clocks(program.plan.workers, cost_model.cluster.overlap_slowdown)
        self.events: list[Event] = []
        self.groups = Groups()
        self.into: dict[str, list[Edge]] = defaultdict(list)
        self.out_of: dict[str, list[Edge]] = defaultdict(list)
        for edge in self.graph.edges:
            self.into[edge.consumer].append(edge)
            self.out_of[edge.producer].append(edge)
        self.arrived: dict[tuple[Edge, int, bool], float] = {}
        """End of an exchange by edge, micro-batch, and whether it is the backward one."""
        self.summed: dict[str, float] = {}
        """End of the gradient sum by op."""
        self.gathered: dict[str, float] = {}
        """End of the gather of updated parameters by op."""
        self.accumulating = set[str]()
        """Ops with gradients that no update has used yet."""
        self.last_backward = {task.segment: task for task in program.order if task.backward}
        self.every_pass = self.plan.update == "pass"

    def run(self) -> Timeline:
        """Visit all tasks and return the timeline."""
        for task in self.program.order:
            names = self.program.segments[task.segment].ops
            batches = range(self.plan.micro_batches) if task.micro_batch is None else (task.micro_batch,)
            if not task.backward:
                for name in names:
                    self._forward(self.graph[name], batches)
                continue
            updated = self.every_pass and names[0] not in self.program.merged
            for name in reversed(names):
                self._backward(self.graph[name], batches, sums=updated or self._is_last(task))
            for name in reversed(names) if updated else ():
                self._update(self.graph[name])
        for op in reversed(self.graph.ops):
            if not (self.every_pass and op.name not in self.program.merged):
                self._update(op)
        model = self.cost_model
        return Timeline(self.program, model.cluster, model.precision, tuple(self.events), self.clocks.end)

    def _is_last(self, task: Task) -> bool:
        return self.last_backward[task.segment] == task

    def _forward(self, op: Op, batches: range | tuple[int]) -> None:
        name, merged = op.name, self.program.merged
        ready = max([self.arrived[edge, m, False] for edge in self.into[name] for m in batches], default=0.0)
        start, end = self._work("forward", op, batches, max(ready, self.gathered.get(name, 0.0)))
        for edge in self.into[name]:
            if self._in_passes(edge) and batches[0] + 1 < self.plan.micro_batches:
                self._exchange(edge, batches[0] + 1, False, start)
        for edge in self.out_of[name]:
            for m in batches[:1] if name in merged and edge.consumer not in merged else batches:
                self._exchange(edge, m, False, end)

    def _backward(self, op: Op, batches: range | tuple[int], sums: bool) -> None:
        ready = max(
            [self.arrived[edge, m, True] for edge in self.out_of[op.name] for m in batches], default=0.0
        )
        _, end = self._work("backward", op, batches, ready)
        layout = self.plan[op.name]
        if sums and op.parameters:
            self.summed[op.name] = end
            if layout.parameter_holders > 1:
                self.summed[op.name] = self._message(
                    "sum", op.name, None, layout.on, end, self.cost_model.sync(op, layout).sum_s
                )
        for edge in self.into[op.name]:
            for m in batches:
                self._exchange(edge, m, True, end)

    def _update(self, op: Op) -> None:
        if not op.parameters:
            return
        layout = self.plan[op.name]
        self.accumulating.discard(op.name)
        sync = self.cost_model.sync(op, layout)
        start = max(self.summed[op.name], self.groups[layout.on].latest(self.clocks.compute))
        end = self.clocks.work(self.groups[layout.on], self.summed[op.name], sync.update_s)
        self._record(Event("update", op.name, None, layout.on, start, end, None))
        if layout.parameter_holders > 1:
            beside_s = math.inf if self.every_pass else sync.update_s  # other passes may follow
            end = self._message("gather", op.name, None, layout.on, end, sync.gather_s, beside_s)
        self.gathered[op.name] = end

    def _in_passes(self, edge: Edge) -> bool:
        """Return whether the edge leads from merged segments to ops that run pass by pass."""
        return edge.producer in self.program.merged and edge.consumer not in self.program.merged

    def _work(self, kind: str, op: Op, batches: range | tuple[int], ready: float) -> tuple[float, float]:
        """Compute a pass of the op; return its start and end."""
        name, backward = op.name, kind == "backward"
        layout = self.plan[name]
        rows = self._rows(name, layout)
        own = self.cost_model.part_seconds(op, layout, rows)[:, int(backward)]
        group = self.groups[layout.on]
        start = max(ready, group.latest(self.clocks.compute))
        if backward and op.parameters:
            if name in self.accumulating:
                own = own + self.cost_model.accumulate(op, layout)
            self.accumulating.add(name)
        computing = 0.0 if self.mean_computing is None else float(self.mean_computing[list(layout.on)].max())
        own = self.cost_model.processor_sharing(own, layout, computing)
        end = self.clocks.work(group, ready, float(own.max()))
        m = batches[0] if self.plan.micro_batches > 1 and name not in self.program.merged else None
        kept = self.cost_model.part_kept(op, layout, rows)
        self.events.append(Event(kind, name, m, layout.on, start, end, own, -kept if backward else kept))
        return start, end

    def _rows(self, name: str, layout: Layout) -> tuple[int, ...]:
        """Return the samples of a part by its index along n, of one pass."""
        if name not in self.program.merged:
            return layout.samples_by_index(self.samples)
        if self.plan.scheme == "b":  # worker i computes the samples of pass i
            return (self.samples,) * len(layout.on)
        return tuple(self.plan.micro_batches * rows for rows in layout.samples_by_index(self.samples))

    def _exchange(self, edge: Edge, m: int, backward: bool, ready: float) -> None:
        producer, consumer = self.graph[edge.producer], self.graph[edge.consumer]
        layout = self.plan[edge.producer]
        if self.plan.scheme == "b" and self._in_passes(edge):
            layout = Layout(on=(layout.on[m],))
        traffic = self.cost_model.traffic(
            producer, layout, consumer, self.plan[edge.consumer], edge.which, self.samples
        )
        if traffic.workers:
            seconds = traffic.backward_s if backward else traffic.forward_s
            kind = "exchange back" if backward else "exchange"
            of = m if self.plan.micro_batches > 1 else None
            stages = self.plan[edge.producer].on, self.plan[edge.consumer].on
            if isinstance(self.clocks, TwoWayClocks) and self.cost_model.cluster.on_other_nodes(*stages):
                senders, receivers = (self.groups[on] for on in (stages[::-1] if backward else stages))
                start = self.clocks.exchange_starts(senders, receivers, ready)
                ready = self.clocks.exchange(senders, receivers, ready, seconds)
                self._record(Event(kind, str(edge), of, traffic.workers, start, ready, None))
            else:
                ready = self._message(kind, str(edge), of, traffic.workers, ready, seconds)
        self.arrived[edge, m, backward] = ready

    def _message(
        self,
        kind: str,
        name: str,
        m: int | None,
        workers: tuple[int, ...],
        ready: float,
        seconds: float,
        beside_s: float = math.inf,
    ) -> float:
        """Send a message; return its end. `beside_s`: as in `Clocks.message`."""
        group = self.groups[workers]
        start = self.clocks.message_starts(group, ready)
        end = self.clocks.message(group, ready, seconds, beside_s)
        self._record(Event(kind, name, m, workers, start, end, None))
        return end

    def _record(self, event: Event) -> None:
        if event.end_s > event.start_s:
            self.events.append(event)
