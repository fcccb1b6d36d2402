"""The strategies. Each has a file with its options and a function (graph, workers, options) → plan.

A new one is a file here and an entry in `STRATEGIES`. Other strategies have no file here: `searched`,
whose plan comes from a search (`parallel/search/resolve.py`), and the peers, such as `ddp`, which are
other tools (`parallel/runtime/peers/`).
"""

from __future__ import annotations

from parallel.config import StrategyConfig
from parallel.graph import Graph
from parallel.plans import Plan
from parallel.strategies.data_parallel import DataParallel, data_parallel
from parallel.strategies.from_file import FromFile, from_file
from parallel.strategies.model_parallel import ModelParallel, model_parallel
from parallel.strategies.one_weird_trick import OneWeirdTrick, one_weird_trick
from parallel.strategies.single import Single, single
from parallel.strategies.strategy import Strategy

__all__ = [
    "STRATEGIES",
    "DataParallel",
    "FromFile",
    "ModelParallel",
    "OneWeirdTrick",
    "Single",
    "Strategy",
    "build_plan",
]

STRATEGIES: dict[str, Strategy] = {
    "single": Strategy(Single(), single),
    "data_parallel": Strategy(DataParallel(), data_parallel),
    "model_parallel": Strategy(ModelParallel(), model_parallel),
    "one_weird_trick": Strategy(OneWeirdTrick(), one_weird_trick),
    "from_file": Strategy(FromFile(), from_file),
}


def build_plan(graph: Graph, workers: int, options: StrategyConfig) -> Plan:
    """Return the plan of a strategy in `STRATEGIES`.

    Raises `ValueError` if it does not fit the model or the number of workers.
    """
    return STRATEGIES[options.name].build(graph, workers, options)
