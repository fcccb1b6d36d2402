"""The plans that have a name: what a search starts from and must not be worse than."""

from __future__ import annotations

from parallel.config import StrategyConfig
from parallel.graph import Graph
from parallel.plans import Plan, check_batch
from parallel.strategies.data_parallel import data_parallel
from parallel.strategies.model_parallel import model_parallel
from parallel.strategies.one_weird_trick import one_weird_trick
from parallel.strategies.strategy import Setting, Strategy

NAMED: tuple[tuple[str, Strategy, StrategyConfig], ...] = (
    ("data_parallel", data_parallel, StrategyConfig("data_parallel")),
    *((f"one_weird_trick {scheme}", one_weird_trick, StrategyConfig("one_weird_trick", scheme=scheme))
      for scheme in "abc"),
    ("model_parallel tensor", model_parallel, StrategyConfig("model_parallel", scheme="tensor")),
    *((f"model_parallel layers {m}", model_parallel, StrategyConfig("model_parallel", scheme="layers", micro_batches=m))
      for m in (1, 2, 4, 8)),
)
"""Label, strategy and its options. Every plan here gives exact SGD: plans that update every pass are another method."""


def named_plans(graph: Graph, workers: int, setting: Setting) -> dict[str, Plan]:
    """Those that fit the model, the workers and the batch, by label."""
    plans: dict[str, Plan] = {}
    for label, strategy, config in NAMED:
        try:
            plan = strategy(graph, workers, config, setting)
            check_batch(graph, plan, setting.batch_size)
        except ValueError:
            continue  # this one does not fit: more stages than layers, a batch that is no multiple, no linear layers
        plans[label] = plan
    return plans
