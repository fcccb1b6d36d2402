"""The strategies: a page each, a function from graph and configuration to a plan. A new one is a file and a line here.

`ddp` is not among them: torch's own DistributedDataParallel makes no plan. It is the outside reference, in
`parallel/runtime/execution/ddp.py`.
"""

from __future__ import annotations

from parallel.config import StrategyConfig
from parallel.graph import Graph
from parallel.plans import Plan
from parallel.strategies.data_parallel import data_parallel
from parallel.strategies.from_file import from_file
from parallel.strategies.model_parallel import model_parallel
from parallel.strategies.one_weird_trick import one_weird_trick
from parallel.strategies.searched import searched
from parallel.strategies.single import single
from parallel.strategies.strategy import Setting, Strategy

STRATEGIES: dict[str, Strategy] = {
    "single": single,
    "data_parallel": data_parallel,
    "model_parallel": model_parallel,
    "one_weird_trick": one_weird_trick,
    "searched": searched,
    "from_file": from_file,
}


def build_plan(graph: Graph, workers: int, config: StrategyConfig, setting: Setting | None = None) -> Plan:
    """The plan of the configured strategy. Raises `ValueError` when it does not fit the model or the workers."""
    return STRATEGIES[config.name](graph, workers, config, setting or Setting())
