"""Everything on worker 0: the baseline."""

from __future__ import annotations

from parallel.config import StrategyConfig, require
from parallel.graph import Graph
from parallel.plans import Layout, Plan, make_plan
from parallel.strategies.strategy import Setting


def single(graph: Graph, workers: int, config: StrategyConfig, setting: Setting) -> Plan:
    """The plan with every op on worker 0."""
    require(workers == 1, "workers", workers, "does not fit strategy=single, which runs on 1")
    return make_plan(graph, 1, {graph.ops[0].name: Layout(on=(0,))})
