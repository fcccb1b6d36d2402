"""Data parallelism: every op is split in n; each worker has all weights and a part of the batch."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.config import StrategyConfig
from parallel.graph import Graph
from parallel.plans import Layout, Plan, make_plan


@dataclass(frozen=True)
class DataParallel(StrategyConfig):
    """No options."""

    name: str = "data_parallel"


def data_parallel(graph: Graph, workers: int, options: DataParallel) -> Plan:
    """Return the plan with every op split in n over all workers."""
    return make_plan(graph, workers, {graph.ops[0].name: Layout(on=tuple(range(workers)), n=workers)})
