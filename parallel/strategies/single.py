"""Everything on worker 0: the baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from parallel.config import StrategyConfig, require
from parallel.graph import Graph
from parallel.plans import Layout, Plan, make_plan


@dataclass(frozen=True)
class Single(StrategyConfig):
    """No options; always one worker."""

    name: str = "single"

    fixed_workers: ClassVar[int | None] = 1


def single(graph: Graph, workers: int, options: Single) -> Plan:
    """Return the plan with every op on worker 0."""
    require(workers == 1, "workers", workers, "does not fit strategy=single, which runs on 1")
    return make_plan(graph, 1, {graph.ops[0].name: Layout(on=(0,))})
