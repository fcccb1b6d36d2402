"""The baseline: everything on worker 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from parallel.config import StrategyConfig, require
from parallel.config.strategy import BASELINE
from parallel.graph import Graph
from parallel.plans import Layout, Plan, make_plan


@dataclass(frozen=True)
class Single(StrategyConfig):
    """Options of the baseline (none), which always has one worker."""

    name: str = BASELINE

    fixed_workers: ClassVar[int | None] = 1
    baseline: ClassVar[bool] = True


def single(graph: Graph, workers: int, options: Single) -> Plan:
    """Return the plan with every op on worker 0."""
    require(workers == 1, "workers", workers, "must be 1 for strategy=single")
    return make_plan(graph, 1, {graph.ops[0].name: Layout(on=(0,))})
