"""Plans outside the space of nested blocks, with lower bounds, so that few have to be simulated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from parallel.graph import Graph
from parallel.plans import Plan
from parallel.simulator.cost_model import CostModel


@dataclass(frozen=True)
class Proposal:
    """A plan that has not been made yet."""

    bound_s: float
    """Lower bound of its timeline, with the loading of its images unless that overlaps."""
    family: str
    """given, pipelines or passes."""
    make: Callable[[], Plan]


def least_s(graph: Graph, plan: Plan, batch_size: int, cost_model: CostModel) -> float:
    """Return a lower bound of any plan's timeline: the computing of the worker with most of it."""
    samples = batch_size // plan.micro_batches
    merged = plan[graph.ops[0].name] if plan.scheme != "a" else None
    busy: dict[int, float] = {}
    for op in graph:
        layout = plan[op.name]
        # Computed for all passes at once, or in all passes.
        if layout == merged and samples % layout.degrees[0] == 0:
            seconds = sum(cost_model.compute(op, layout, batch_size))
        else:
            times = 1 if layout == merged else plan.micro_batches
            seconds = times * sum(cost_model.compute(op, layout, samples))
        for worker in {min(layout.on), max(layout.on)}:
            busy[worker] = busy.get(worker, 0.0) + seconds
    return max(busy.values())
