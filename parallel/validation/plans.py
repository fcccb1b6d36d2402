"""The plans that a validation measures, and their predictions.

    named       everything on one worker, and every named plan that fits the workers and the batch
    optimum     the plan that the search finds, which may be a named one
    runner-up   the best predicted plans that differ in one op from the best plan of the space
    random      plans with a random candidate of the search's space for every op

A prediction is *held out* if calibration did not measure all shapes of the plan, so that the
regression predicted some: either the batch size is another, or the plan divides an op differently.
Neither predictions nor measurements include loading images.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from parallel.cluster import Cluster
from parallel.cluster.recording import RecordingCompute
from parallel.graph import Graph
from parallel.plans import Layout, Plan, make_plan, read_plan
from parallel.results.validation import StepSplit
from parallel.search import SearchConfig, search
from parallel.search.space import Space, space_of
from parallel.simulator.cost_model import CostModel
from parallel.simulator.simulate import lower_on, simulate
from parallel.strategies.named import named_plans

Choice = Mapping[str, int]
"""Index of the candidate of each op that the space decides."""


@dataclass(frozen=True)
class PredictedPlan:
    """One plan at one batch size, before its measurement."""

    name: str
    kind: str
    plan: Plan
    batch_size: int
    held_out: bool
    step_s: float
    split: StepSplit
    memory_bytes: int
    """Maximum over the workers."""

    def to_plain(self) -> dict[str, Any]:
        """Return the fields as values that workers can send each other."""
        return vars(self) | {"plan": str(self.plan), "split": vars(self.split)}

    @staticmethod
    def from_plain(values: dict[str, Any], graph: Graph, workers: int) -> PredictedPlan:
        """Return the plan that `to_plain` made these values of."""
        plan = read_plan(values["plan"], graph, workers)
        return PredictedPlan(**values | {"plan": plan, "split": StepSplit(**values["split"])})


class PlanChooser:
    """Chooses and predicts the plans for one batch size."""

    def __init__(self, graph: Graph, workers: int, batch_size: int, cluster: Cluster, precision: str) -> None:
        self.graph, self.workers, self.batch_size, self.precision = graph, workers, batch_size, precision
        self.cluster = dataclasses.replace(cluster, data_s_per_image=0.0)  # measurements load no images
        self.cost_model = CostModel(graph, batch_size, self.cluster, precision)
        self.space = space_of(graph, batch_size, workers, self.cluster)

    def choose(self, runners_up: int, drawn: int, seed: int) -> list[PredictedPlan]:
        """Return the plans of all kinds, each plan once."""
        named = {
            "single": make_plan(self.graph, self.workers, {self.graph.ops[0].name: Layout(on=(0,))}),
            **named_plans(self.graph, self.workers, self.batch_size),
        }
        optimum = self.optimum(named)
        names: dict[Plan, tuple[str, str]] = {}
        for label, plan in named.items():
            names.setdefault(plan, (label, "named"))
        label = f"{names[optimum][0]}, the optimum" if optimum in names else "the optimum"
        names[optimum] = label, "optimum"
        best = self.descend(self.space.find(optimum) or self.best_start(named))
        for change, plan in self.changed(best):
            if plan not in names and runners_up > 0:
                names[plan] = f"optimum, but {change}", "runner-up"
                runners_up -= 1
        # The seed depends on the batch size, so that the batch sizes have different random plans.
        order = random.Random(f"{seed} {self.batch_size}")
        for number in range(1, drawn + 1):
            names.setdefault(random_plan(self.space, order), (f"random {number}", "random"))
        return [self.predict(name, kind, plan) for plan, (name, kind) in names.items()]

    def optimum(self, named: Mapping[str, Plan]) -> Plan:
        """Return the plan that the search finds."""
        return search(
            self.graph,
            self.batch_size,
            self.workers,
            self.cluster,
            self.precision,
            SearchConfig(),
            start=tuple(named.values()),
        ).plan

    def best_start(self, named: Mapping[str, Plan]) -> Choice:
        """Return the best named plan in the space, used if the optimum (a pipeline) is not in
        it."""
        choices = [choice for plan in named.values() if (choice := self.space.find(plan)) is not None]
        return min(choices, key=self.step_s)

    def descend(self, choice: Choice) -> Choice:
        """Change one op at a time as long as the predicted step gets shorter."""
        while True:
            best = min(self.neighbours(choice), key=self.step_s, default=choice)  # one worker: no neighbours
            if self.step_s(best) >= self.step_s(choice):
                return choice
            choice = best

    def neighbours(self, choice: Choice) -> list[Choice]:
        """Return all choices that differ in one op."""
        return [
            {**choice, op: index}
            for op, candidates in self.space.candidates.items()
            for index in range(len(candidates))
            if index != choice[op]
        ]

    def changed(self, choice: Choice) -> list[tuple[str, Plan]]:
        """Return the neighbours as plans, the best first, each with a description of the changed
        op."""
        plans = []
        for other in sorted(self.neighbours(choice), key=self.step_s):
            op = next(op for op in other if other[op] != choice[op])
            plans.append((f"{op} {self.space.layout(op, other[op])}", self.space.plan(other)))
        return plans

    def step_s(self, choice: Choice) -> float:
        """Return the predicted step time of a plan of the space."""
        program = lower_on(self.cluster, self.graph, self.space.plan(choice), self.batch_size)
        return simulate(program, self.cluster, self.precision, self.cost_model).step_s

    def predict(self, name: str, kind: str, plan: Plan) -> PredictedPlan:
        """Return the prediction, from a new cost model that records which costs were measured."""
        compute = RecordingCompute(self.cluster.compute)
        cluster = dataclasses.replace(self.cluster, compute=compute)
        program = lower_on(cluster, self.graph, plan, self.batch_size)
        timeline = simulate(program, cluster, self.precision)
        parts = timeline.split
        split = StepSplit(*(float(part.mean()) for part in (parts.compute_s, parts.exposed_s, parts.idle_s)))
        return PredictedPlan(
            name,
            kind,
            plan,
            self.batch_size,
            compute.learned,
            timeline.step_s,
            split.scaled(timeline.step_s),
            max(timeline.peak_memory),
        )


def random_plan(space: Space, order: random.Random) -> Plan:
    """Return a plan of the space; all candidates of an op are equally likely."""
    return space.plan({op: order.randrange(len(candidates)) for op, candidates in space.candidates.items()})
