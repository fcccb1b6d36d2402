"""Simulating a program: one pass over its tasks in their global order, each moving the clocks (`clocks`).

For every op o, micro-batch m and edge e = (producer p, consumer o), with the prices f, b, x, s, u, g (`prices`):

    F(o, m)  computes on o's workers for f, once the exchanges of its inputs have ended and, where every pass updates,
             its gathered parameters are there
    X(e, m)  after F(p, m), a message for x among those who hold or need parts; ended at once where nothing moves
    B(o, m)  computes for b, once the gradients of its outputs are there: X'(e, m) of its consumers' edges
    X'(e, m) after B(o, m), the transposed message
    S(o)     after the last B(o, m), before X', a message for s among o's workers, if they hold the same parameters
    U(o)     computes for u, once S(o) has ended; after all backwards, in their order (after each pass if that updates)
    G(o)     after U(o), a message for g

    step = latest clock + overhead of a step

Where workers share cores (`Cluster.crowding`), f and b are as long as the op's own workers make them: the others wait
for it. In a pipeline they do not; there as many compute beside a worker as did on average when it was simulated before.

Ops of a segment come one after the other, forward in order and backward in reverse; ops of merged segments (schemes b
and c) are computed for all micro-batches at once, and there X(e, m + 1) begins when its consumer begins pass m.
Where the runtime joins small tensors in buckets, or starts an exchange at the end of the segment, the model does it op
by op: then the time of a plan with one micro-batch is a fold over its ops (`fold`), which the searches rely on.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from parallel.cluster import Cluster
from parallel.config import require
from parallel.graph import INPUT, Graph
from parallel.graph.ops import Op
from parallel.plans import Layout
from parallel.program import Program
from parallel.program.schedule import Task
from parallel.simulator.clocks import Clocks, Crew
from parallel.simulator.cost_model import CostModel, holders_of, rows_of
from parallel.simulator.timeline import Event, Timeline

SETTLING = 3
"""Times that a pipeline whose workers share cores is simulated again with who computed beside whom."""


@dataclass(frozen=True)
class Edge:
    """Input `which` of op `consumer`, which `producer` computes."""

    producer: str
    consumer: str
    which: int

    def __str__(self) -> str:
        return f"{self.producer}>{self.consumer}"


def edges_of(graph: Graph) -> tuple[Edge, ...]:
    """All edges between ops, in the order of their consumers."""
    return tuple(Edge(producer, op.name, i) for op in graph for i, producer in enumerate(op.inputs)
                 if producer != INPUT)


def simulate(program: Program, cluster: Cluster, precision: str, cost_model: CostModel | None = None) -> Timeline:
    """The timeline of one step. `prices` may be shared by simulations of the same graph, batch and cluster."""
    require_room(program.plan.workers, cluster)
    if cost_model is None:
        cost_model = CostModel(program.graph, program.batch_size, cluster, precision)
    line = _Simulation(program, cost_model, None).run()
    if program.plan.micro_batches > 1 and cluster.crowding:
        for _ in range(SETTLING):  # who computes beside whom changes how long that takes, and so who does
            line = _Simulation(program, cost_model, line.computing_beside).run()
    return line


def require_room(workers: int, cluster: Cluster) -> None:
    """Raise `ValueError` if the cluster has too few workers."""
    require(workers <= cluster.workers, "workers", workers,
            f"is more than the {cluster.workers} of cluster {cluster.name}")


class _Simulation:
    """The state of a simulation."""

    def __init__(self, program: Program, cost_model: CostModel, beside: np.ndarray | None) -> None:
        """`beside`: workers of each worker's node that compute while it computes, itself among them, on average [w];
        None: those of the same op."""
        self.program, self.cost_model, self.plan, self.graph = program, cost_model, program.plan, program.graph
        self.beside = beside
        self.samples = program.batch_size // program.plan.micro_batches
        self.clocks = Clocks(program.plan.workers, cost_model.cluster.overlap_slowdown)
        self.events: list[Event] = []
        self.crews: dict[tuple[int, ...], Crew] = {}
        self.into: dict[str, list[Edge]] = defaultdict(list)
        self.out_of: dict[str, list[Edge]] = defaultdict(list)
        for edge in edges_of(self.graph):
            self.into[edge.consumer].append(edge)
            self.out_of[edge.producer].append(edge)
        self.arrived: dict[tuple[Edge, int, bool], float] = {}
        """When an exchange has ended, by edge, micro-batch and whether it is the backward one."""
        self.summed: dict[str, float] = {}
        self.gathered: dict[str, float] = {}
        self.begun = set[str]()
        """Ops that have gradients which are not yet used up."""
        self.last = {task.segment: task for task in program.order if task.backward}
        self.every_pass = self.plan.update == "pass"

    def run(self) -> Timeline:
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
        return self.last[task.segment] == task

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
        ready = max([self.arrived[edge, m, True] for edge in self.out_of[op.name] for m in batches], default=0.0)
        _, end = self._work("backward", op, batches, ready)
        layout = self.plan[op.name]
        if sums and op.parameters:
            self.summed[op.name] = end
            if holders_of(layout) > 1:
                self.summed[op.name] = self._message("sum", op.name, None, layout.on, end,
                                                     self.cost_model.sync(op, layout).sum_s)
        for edge in self.into[op.name]:
            for m in batches:
                self._exchange(edge, m, True, end)

    def _update(self, op: Op) -> None:
        if not op.parameters:
            return
        layout = self.plan[op.name]
        self.begun.discard(op.name)
        sync = self.cost_model.sync(op, layout)
        start = max(self.summed[op.name], self._crew(layout.on).latest(self.clocks.compute))
        end = self.clocks.work(self._crew(layout.on), self.summed[op.name], sync.update_s)
        self._note(Event("update", op.name, None, layout.on, start, end, None))
        if holders_of(layout) > 1:
            end = self._message("gather", op.name, None, layout.on, end, sync.gather_s)
        self.gathered[op.name] = end

    def _in_passes(self, edge: Edge) -> bool:
        """Whether the edge leads from ops computed at once to ops computed pass by pass."""
        return edge.producer in self.program.merged and edge.consumer not in self.program.merged

    def _work(self, kind: str, op: Op, batches: range | tuple[int], ready: float) -> tuple[float, float]:
        """Compute the op; returns start and end."""
        layout, backward = self.plan[op.name], kind == "backward"
        name = op.name
        rows = self._rows(name, layout)
        own = self.cost_model.part_seconds(op, layout, rows)[:, int(backward)]
        crew = self._crew(layout.on)
        start = max(ready, crew.latest(self.clocks.compute))
        if backward and op.parameters:
            if name in self.begun:
                own = own + self.cost_model.accumulate(op, layout)
            self.begun.add(name)
        computing = 0.0 if self.beside is None else float(self.beside[list(layout.on)].max())
        own = self.cost_model.together(own, layout, computing)
        end = self.clocks.work(crew, ready, float(own.max()))
        m = batches[0] if self.plan.micro_batches > 1 and name not in self.program.merged else None
        kept = self.cost_model.part_kept(op, layout, rows)
        self.events.append(Event(kind, name, m, layout.on, start, end, own, -kept if backward else kept))
        return start, end

    def _rows(self, name: str, layout: Layout) -> tuple[int, ...]:
        """Samples of the parts with each index in n, of one computation."""
        if name not in self.program.merged:
            return rows_of(layout, self.samples)
        if self.plan.scheme == "b":  # worker i computes the samples of pass i
            return (self.samples,) * layout.n
        return tuple(self.plan.micro_batches * rows for rows in rows_of(layout, self.samples))

    def _exchange(self, edge: Edge, m: int, backward: bool, ready: float) -> None:
        producer, consumer = self.graph[edge.producer], self.graph[edge.consumer]
        layout = self.plan[edge.producer]
        if self.plan.scheme == "b" and self._in_passes(edge):
            layout = Layout(on=(layout.on[m],))
        traffic = self.cost_model.traffic(producer, layout, consumer, self.plan[edge.consumer], edge.which,
                                          self.samples)
        if traffic.workers:
            seconds = traffic.backward_s if backward else traffic.forward_s
            kind = "exchange back" if backward else "exchange"
            ready = self._message(kind, str(edge), m if self.plan.micro_batches > 1 else None, traffic.workers, ready,
                                  seconds)
        self.arrived[edge, m, backward] = ready

    def _message(self, kind: str, name: str, m: int | None, workers: tuple[int, ...], ready: float, seconds: float,
                 ) -> float:
        """Send a message; returns when it ends."""
        crew = self._crew(workers)
        start = max(ready, crew.latest(self.clocks.network))
        end = self.clocks.message(crew, ready, seconds)
        self._note(Event(kind, name, m, workers, start, end, None))
        return end

    def _note(self, event: Event) -> None:
        if event.end_s > event.start_s:
            self.events.append(event)

    def _crew(self, workers: tuple[int, ...]) -> Crew:
        if workers not in self.crews:
            self.crews[workers] = Crew(workers)
        return self.crews[workers]
