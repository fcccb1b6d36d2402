"""The named plans, which a search starts from. Its result is at least as good as the best of
them."""

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
"""Options by label. All plans train with exact SGD; plans that update in every pass are not
included."""


def named_plans(graph: Graph, workers: int, batch_size: int) -> dict[str, Plan]:
    """Return the named plans that fit the model, the workers and the batch, by label."""
    plans: dict[str, Plan] = {}
    for label, options in NAMED.items():
        try:
            plan = build_plan(graph, workers, options)
            check_batch(graph, plan, batch_size)
        except ValueError:
            continue  # does not fit: too many stages, a batch that is not a multiple, no linear layers
        plans[label] = plan
    return plans
