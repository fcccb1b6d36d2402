"""The plans that have a name: what a search starts from and must not be worse than."""

from __future__ import annotations

from parallel.config import StrategyConfig
from parallel.graph import Graph
from parallel.plans import Plan, check_batch
from parallel.strategies import build_plan
from parallel.strategies.data_parallel import DataParallel
from parallel.strategies.model_parallel import ModelParallel
from parallel.strategies.one_weird_trick import OneWeirdTrick

NAMED: dict[str, StrategyConfig] = {
    "data_parallel": DataParallel(),
    **{f"one_weird_trick {scheme}": OneWeirdTrick(scheme=scheme) for scheme in "abc"},
    "model_parallel tensor": ModelParallel(scheme="tensor"),
    **{f"model_parallel layers {m}": ModelParallel(micro_batches=m) for m in (1, 2, 4, 8)},
}
"""Options by label. Every plan here gives exact SGD: plans that update every pass are another method."""


def named_plans(graph: Graph, workers: int, batch_size: int) -> dict[str, Plan]:
    """Return the named plans that fit the model, the workers and the batch, by label."""
    plans: dict[str, Plan] = {}
    for label, options in NAMED.items():
        try:
            plan = build_plan(graph, workers, options)
            check_batch(graph, plan, batch_size)
        except ValueError:
            continue  # this one does not fit: more stages than layers, a batch that is no multiple, no linear layers
        plans[label] = plan
    return plans
