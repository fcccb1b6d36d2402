"""Delta simulation: the step time after changing the layout of one op.

FlexFlow (Jia et al. 2019, section 5.3) updates a task graph from a queue of changed tasks. Here the
timeline is a recurrence over stages (`recurrence`): a change computes the costs of the op, of the
ops that follow it, and of the edges at them anew, and evaluates the recurrence from the first stage
that one of these costs belongs to. `full_step_s` computes the same from scratch: it lowers the
plan, computes the cost of every part and visits the whole program. Both give identical floats.
"""

from __future__ import annotations

from collections.abc import Mapping

from parallel.cluster import Cluster
from parallel.config import require
from parallel.graph import Graph
from parallel.graph.box import leaves_none_empty
from parallel.plans import Layout, Plan, follow, make_plan
from parallel.plans.layout import check_layout
from parallel.simulator.clocks import Groups
from parallel.simulator.cost_model import CostModel
from parallel.simulator.recurrence import Evaluation, ExchangeCost, OpCost, Recurrence
from parallel.simulator.simulate import lower_on, require_room, simulate


def full_step_s(plan: Plan, cost_model: CostModel, memoised: bool) -> float:
    """Return the seconds of a step by lowering and simulating the whole plan.

    With `memoised`, costs that the cost model has computed before are reused.
    """
    if not memoised:
        cost_model = CostModel(
            cost_model.graph, cost_model.batch_size, cost_model.cluster, cost_model.precision
        )
    cluster = cost_model.cluster
    program = lower_on(cluster, cost_model.graph, plan, cost_model.batch_size)
    return simulate(program, cluster, cost_model.precision, cost_model).step_s


class DeltaSimulation:
    """A plan with one micro-batch whose layouts change one op at a time.

    `propose` returns the step time after a change, and `accept` applies the last one proposed.
    """

    def __init__(self, cost_model: CostModel, workers: int, decided: Mapping[str, Layout]) -> None:
        require_room(workers, cost_model.cluster)
        self.cost_model, self.workers = cost_model, workers
        self.graph: Graph = cost_model.graph
        cluster: Cluster = cost_model.cluster
        self._overhead_s = cluster.step_overhead_s
        self._recurrence = Recurrence(self.graph, workers, cluster.overlap_slowdown)
        self._groups = Groups()
        self.decided = dict(decided)
        self.layouts: dict[str, Layout] = dict(make_plan(self.graph, workers, decided).layouts)
        self._ops = {op.name: self._op_cost(op.name, self.layouts[op.name]) for op in self.graph}
        self._edges = [self._exchange_cost(e, self.layouts) for e in range(len(self._recurrence.edges))]
        self._evaluation = self._recurrence.evaluate(self._ops, self._edges)
        self._proposed: (
            tuple[str, dict[str, Layout], dict[str, OpCost], list[ExchangeCost], Evaluation] | None
        ) = None

    @property
    def step_s(self) -> float:
        """Seconds of a step of the current plan."""
        return self._evaluation.end_s + self._overhead_s

    def plan(self) -> Plan:
        """Return the current plan."""
        return Plan(workers=self.workers, layouts=dict(self.layouts))

    def propose(self, name: str, layout: Layout) -> float:
        """Return the seconds of a step with this layout of op `name`, which others may follow.

        Raises `ValueError` if the layout is invalid for the op.
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
        evaluation = self._evaluation
        if changed:
            evaluation = self._recurrence.evaluate(ops, edges, evaluation, first)
        self._proposed = name, layouts, ops, edges, evaluation
        return evaluation.end_s + self._overhead_s

    def accept(self) -> None:
        """Apply the last proposal."""
        if self._proposed is None:
            raise RuntimeError("accept() needs a proposal: call propose() first")
        name, self.layouts, self._ops, self._edges, self._evaluation = self._proposed
        self.decided[name] = self.layouts[name]
        self._proposed = None

    def _changed(self, name: str, layout: Layout) -> dict[str, Layout]:
        """Return the layouts that a change affects: those of the op and of its followers."""
        changed: dict[str, Layout] = {}
        for op in self.graph.ops[self._recurrence.index[name] :]:
            if op.name == name:
                new = layout
            elif op.name in self.decided:
                continue
            else:
                followed = self.graph.followed(op)
                if followed not in changed:
                    continue
                new = follow(op, changed[followed])
            if new != self.layouts[op.name]:
                check_layout(op, new, self.workers)
                require(
                    leaves_none_empty(self.cost_model.batch_size, new.n),
                    f"ops.{op.name}.n",
                    new.n,
                    f"is more parts than the batch has samples, {self.cost_model.batch_size}, or leaves one empty",
                )
                changed[op.name] = new
        return changed

    def _op_cost(self, name: str, layout: Layout) -> OpCost:
        op = self.graph[name]
        forward_s, backward_s = self.cost_model.compute(op, layout, self.cost_model.batch_size)
        sync = self.cost_model.sync(op, layout) if op.parameters else None
        return OpCost(self._groups[layout.on], forward_s, backward_s, sync, layout.parameter_holders > 1)

    def _exchange_cost(self, e: int, layouts: Mapping[str, Layout]) -> ExchangeCost:
        edge = self._recurrence.edges[e]
        traffic = self.cost_model.traffic(
            self.graph[edge.producer],
            layouts[edge.producer],
            self.graph[edge.consumer],
            layouts[edge.consumer],
            edge.which,
            self.cost_model.batch_size,
        )
        group = self._groups[traffic.workers] if traffic.workers else None
        return ExchangeCost(group, traffic.forward_s, traffic.backward_s)
