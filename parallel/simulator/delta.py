"""Delta simulation: the step time after moving one op, from what the move changes alone.

FlexFlow (Jia et al. 2019, section 5.3) keeps a task graph and a queue of what changed; here the timeline is a fold
(`fold`), so a move re-prices the op, the ops that follow it and the edges at them, and folds again from the first
stage that one of those prices belongs to. `full_step_s` does all of it from nothing: lowers the plan, prices every
part, walks the whole program. Both give the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping

from parallel.cluster import Cluster
from parallel.config import require
from parallel.graph import INPUT, Graph
from parallel.plans import Layout, Plan, follow, make_plan
from parallel.plans.layout import check_layout
from parallel.program.lowering import lower
from parallel.simulator.clocks import WorkerGroup
from parallel.simulator.cost_model import CostModel
from parallel.simulator.recurrence import Evaluation, ExchangeCost, OpCost, Recurrence
from parallel.simulator.simulate import require_room, simulate


def full_step_s(plan: Plan, cost_model: CostModel, memoised: bool) -> float:
    """Seconds of a step by lowering and simulating the whole plan; with the prices there, or `memoised` False: new."""
    if not memoised:
        cost_model = CostModel(cost_model.graph, cost_model.batch_size, cost_model.cluster, cost_model.precision)
    program = lower(cost_model.graph, plan, cost_model.batch_size)
    return simulate(program, cost_model.cluster, cost_model.precision, cost_model).step_s


class DeltaSimulation:
    """A plan with one micro-batch, given by the layouts of some ops, that is changed one op at a time.

    `propose` says what the step would take, `accept` makes it so; without `accept` nothing has changed.
    """

    def __init__(self, cost_model: CostModel, workers: int, decided: Mapping[str, Layout]) -> None:
        require_room(workers, cost_model.cluster)
        self.cost_model, self.workers = cost_model, workers
        self.graph: Graph = cost_model.graph
        cluster: Cluster = cost_model.cluster
        self._overhead_s = cluster.step_overhead_s
        self._recurrence = Recurrence(self.graph, workers, cluster.overlap_slowdown)
        self._groups: dict[tuple[int, ...], WorkerGroup] = {}
        self.decided = dict(decided)
        self.layouts: dict[str, Layout] = dict(make_plan(self.graph, workers, decided).layouts)
        self._ops = {op.name: self._op_cost(op.name, self.layouts[op.name]) for op in self.graph}
        self._edges = [self._exchange_cost(e, self.layouts) for e in range(len(self._recurrence.edges))]
        self._evaluation = self._recurrence.evaluate(self._ops, self._edges)
        self._proposed: tuple[str, dict[str, Layout], dict[str, OpCost], list[ExchangeCost], Evaluation] | None = None

    @property
    def step_s(self) -> float:
        """Seconds of a step of the plan as it is."""
        return self._evaluation.end_s + self._overhead_s

    @property
    def proposed(self) -> dict[str, Layout]:
        """The layouts of the last proposal, or of the plan if there is none."""
        return self.layouts if self._proposed is None else self._proposed[1]

    def plan(self) -> Plan:
        """The plan as it is."""
        return Plan(workers=self.workers, layouts=dict(self.layouts))

    def propose(self, name: str, layout: Layout) -> float:
        """Seconds of a step if op `name` had this layout, and those that follow it followed.

        Raises `ValueError` if the op cannot be cut like that.
        """
        changed = self._changed(name, layout)
        layouts = {**self.layouts, **changed}
        ops, edges, first = dict(self._ops), list(self._edges), 3 * len(self._recurrence.names)
        for op_name, op_layout in changed.items():
            ops[op_name] = self._op_cost(op_name, op_layout)
            first = min(first, self._recurrence.index[op_name])
        for e in {e for op_name in changed for e in self._recurrence.edges_at(op_name)}:
            edges[e] = self._exchange_cost(e, layouts)
            first = min(first, self._recurrence.index[self._recurrence.edges[e].producer])
        evaluation = self._recurrence.evaluate(ops, edges, self._evaluation, first) if changed else self._evaluation
        self._proposed = name, layouts, ops, edges, evaluation
        return evaluation.end_s + self._overhead_s

    def accept(self) -> None:
        """Make the last proposal the plan."""
        if self._proposed is None:
            raise RuntimeError("nothing was proposed")
        name, self.layouts, self._ops, self._edges, self._evaluation = self._proposed
        self.decided[name] = self.layouts[name]
        self._proposed = None

    def reject(self) -> None:
        """Forget the last proposal."""
        self._proposed = None

    def _changed(self, name: str, layout: Layout) -> dict[str, Layout]:
        """The layouts that differ: the op's own, and those of ops that follow."""
        changed: dict[str, Layout] = {}
        first = self.graph.ops[0].name
        for op in self.graph.ops[self._recurrence.index[name]:]:
            if op.name == name:
                new = layout
            elif op.name in self.decided:
                continue
            else:
                leader = next((producer for producer in op.inputs if producer != INPUT), first)
                if leader not in changed:
                    continue
                new = follow(op, changed[leader])
            if new != self.layouts[op.name]:
                check_layout(op, new, self.workers)
                require(new.n <= self.cost_model.batch_size, f"ops.{op.name}.n", new.n,
                        f"is more parts than the batch has samples, {self.cost_model.batch_size}")
                changed[op.name] = new
        return changed

    def _op_cost(self, name: str, layout: Layout) -> OpCost:
        op = self.graph[name]
        forward_s, backward_s = self.cost_model.compute(op, layout, self.cost_model.batch_size)
        sync = self.cost_model.sync(op, layout) if op.parameters else None
        return OpCost(self._group(layout.on), forward_s, backward_s, sync, layout.parameter_holders > 1)

    def _exchange_cost(self, e: int, layouts: Mapping[str, Layout]) -> ExchangeCost:
        edge = self._recurrence.edges[e]
        traffic = self.cost_model.traffic(self.graph[edge.producer], layouts[edge.producer], self.graph[edge.consumer],
                                      layouts[edge.consumer], edge.which, self.cost_model.batch_size)
        group = self._group(traffic.workers) if traffic.workers else None
        return ExchangeCost(group, traffic.forward_s, traffic.backward_s)

    def _group(self, workers: tuple[int, ...]) -> WorkerGroup:
        if workers not in self._groups:
            self._groups[workers] = WorkerGroup(workers)
        return self._groups[workers]
