"""The plan of a configuration with any strategy, without starting a process."""

from __future__ import annotations

from parallel.cluster import open_cluster
from parallel.config import Config, Searched, require
from parallel.graph import Graph
from parallel.plans import Plan
from parallel.search.resolve import Request, resolve
from parallel.strategies import build_plan
from parallel.strategies.named import named_plans


def plan_of(config: Config, graph: Graph, batch_size: int | None = None) -> Plan:
    """Return the plan of the configured strategy for a global batch, by default
    `trainer.batch_size`.

    With `strategy=searched`, a kept plan is read if there is one; otherwise the search runs. Raises
    `ValueError` if the strategy makes no plan or an invalid one.
    """
    require(
        config.strategy.makes_plan,
        "strategy",
        config.strategy.name,
        "makes no plan: it is a peer (docs/peers.md)",
    )
    workers = config.worker_count()
    if isinstance(config.strategy, Searched):
        batch_size = batch_size or config.trainer.batch_size
        request = Request(
            graph,
            workers,
            batch_size,
            config.trainer.precision,
            open_cluster(config.cluster, workers, channels_last=config.trainer.channels_last),
            config.strategy,
        )
        return resolve(request, named_plans(graph, workers, batch_size))
    return build_plan(graph, workers, config.strategy)
