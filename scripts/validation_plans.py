"""The plans that scripts/validate_simulator.py times, and what the simulator predicts of them.

    named       everything on one worker, and every named plan that fits the workers and the batch
    optimum     what the search finds; a named plan if that is what it finds
    runner-up   the best predicted of those that differ in one op from the best plan of the search's space
    random      a candidate drawn for every op of the search's space

A prediction is *held out* if the learned model had to answer for a shape that calibration has not measured: the batch
size is another, or the plan cuts an op into other parts. Loading images is no part of it, nor of what is measured.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from dataclasses import dataclass

from parallel.cluster import Cluster, Compute, Measured
from parallel.cluster.roofline import is_view
from parallel.graph import Graph
from parallel.graph.ops import Op, Part
from parallel.plans import Layout, Plan, make_plan
from parallel.plans.text import compact
from parallel.program.lowering import lower
from parallel.results.validation import StepSplit
from parallel.search.space import Space, space_of
from parallel.simulator.cost_model import CostModel
from parallel.simulator.simulate import simulate
from parallel.strategies.named import named_plans
from parallel.strategies.strategy import Setting

Chosen = Mapping[str, int]
"""Candidate of every decided op of a space."""


@dataclass(frozen=True)
class Predicted:
    """One plan at one batch size, before it is measured."""

    name: str
    kind: str
    plan: Plan
    batch_size: int
    held_out: bool
    step_s: float
    split: StepSplit
    memory_bytes: int
    """Of the worker that needs most."""


@dataclass
class Asked:
    """Compute that notes whether any answer had to be learned."""

    compute: Compute
    learned: bool = False

    def forward_s(self, op: Op, part: Part, precision: str) -> float:
        if not is_view(op) and not part.box.empty:
            self.learned |= not isinstance(self.compute, Measured) or not self.compute.is_measured(op, part, precision)
        return self.compute.forward_s(op, part, precision)

    def backward_s(self, op: Op, part: Part, precision: str, input_gradient: bool) -> float:
        return self.compute.backward_s(op, part, precision, input_gradient)

    def update_s(self, parameters: int, precision: str) -> float:
        return self.compute.update_s(parameters, precision)

    def add_s(self, numbers: int, precision: str) -> float:
        return self.compute.add_s(numbers, precision)

    def copy_s(self, numbers: int, precision: str) -> float:
        return self.compute.copy_s(numbers, precision)

    def precisions(self) -> tuple[str, ...]:
        return self.compute.precisions()


class Chooser:
    """Chooses the plans for one batch size."""

    def __init__(self, graph: Graph, workers: int, batch_size: int, cluster: Cluster, precision: str) -> None:
        self.graph, self.workers, self.batch_size, self.precision = graph, workers, batch_size, precision
        # What is measured loads no images.
        self.cluster = dataclasses.replace(cluster, data_s_per_image=0.0)
        self.cost_model = CostModel(graph, batch_size, self.cluster, precision)
        self.space = space_of(graph, batch_size, workers, self.cluster)

    def choose(self, runners_up: int, drawn: int, seed: int) -> list[Predicted]:
        """All kinds of plans, each plan once."""
        named = {"single": make_plan(self.graph, self.workers, {self.graph.ops[0].name: Layout(on=(0,))}),
                 **named_plans(self.graph, self.workers, Setting(self.batch_size, self.precision))}
        optimum = self.optimum(named)
        found: dict[Plan, tuple[str, str]] = {}
        for label, plan in named.items():
            found.setdefault(plan, (label, "named"))
        name = f"{found[optimum][0]}, the optimum" if optimum in found else "the optimum"
        found[optimum] = name, "optimum"
        near = self.descend(self.space.find(optimum) or self.best_start(named))
        for name, plan in self.changed(near):
            if plan not in found and runners_up > 0:
                found[plan] = f"optimum, but {name}", "runner-up"
                runners_up -= 1
        # Of each batch size other plans, so that there are more different ones.
        order = random.Random(f"{seed} {self.batch_size}")
        for number in range(1, drawn + 1):
            found.setdefault(draw(self.space, order), (f"random {number}", "random"))
        return [self.predict(name, kind, plan) for plan, (name, kind) in found.items()]

    def optimum(self, named: Mapping[str, Plan]) -> Plan:
        """The search's plan."""
        from parallel.search import SearchConfig, search

        return search(self.graph, self.batch_size, self.workers, self.cluster, self.precision, SearchConfig(),
                      start=tuple(named.values())).plan

    def best_start(self, named: Mapping[str, Plan]) -> Chosen:
        """The best named plan of the space: where to begin if the search's optimum is a pipeline, say."""
        chosen = [inside for plan in named.values() if (inside := self.space.find(plan)) is not None]
        return min(chosen, key=self.step_s)

    def descend(self, chosen: Chosen) -> Chosen:
        """Change one op at a time for the better, as long as that is possible."""
        while True:
            best = min(self.neighbours(chosen), key=self.step_s)
            if self.step_s(best) >= self.step_s(chosen):
                return chosen
            chosen = best

    def neighbours(self, chosen: Chosen) -> list[Chosen]:
        """All that differ in one op."""
        return [{**chosen, op: index} for op, found in self.space.candidates.items() for index in range(len(found))
                if index != chosen[op]]

    def changed(self, chosen: Chosen) -> list[tuple[str, Plan]]:
        """The neighbours as plans with what is changed in words, the best first."""
        ordered = sorted(self.neighbours(chosen), key=self.step_s)
        return [(next(f"{op} {self.space.layout(op, index)}" for op, index in other.items() if index != chosen[op]),
                 self.space.plan(other)) for other in ordered]

    def step_s(self, chosen: Chosen) -> float:
        """Predicted seconds of a plan of the space."""
        program = lower(self.graph, self.space.plan(chosen), self.batch_size)
        return simulate(program, self.cluster, self.precision, self.cost_model).step_s

    def predict(self, name: str, kind: str, plan: Plan) -> Predicted:
        """The prediction, with the prices worked out anew, to see which of them were measured."""
        asked = Asked(self.cluster.compute)
        cluster = dataclasses.replace(self.cluster, compute=asked)
        line = simulate(lower(self.graph, plan, self.batch_size), cluster, self.precision)
        parts = line.split
        split = StepSplit(*(float(part.mean()) for part in (parts.compute_s, parts.exposed_s, parts.idle_s)))
        return Predicted(name, kind, plan, self.batch_size, asked.learned, line.step_s, split.scaled(line.step_s),
                         max(line.peak_memory))


def draw(space: Space, order: random.Random) -> Plan:
    """A plan of the space, every candidate of an op as likely as another."""
    return space.plan({op: order.randrange(len(found)) for op, found in space.candidates.items()})


def short(plan: Plan) -> str:
    """A plan in a line."""
    return "; ".join(f"{names} {layout}" for names, layout in compact(plan))
