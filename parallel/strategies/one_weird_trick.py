"""Convolutions split over the samples, fully connected layers over the features (Krizhevsky 2014).

Convolutions have most of the compute and few weights: splitting the samples leaves little to synchronise. Fully
connected layers have most of the weights and small activations: splitting the features leaves no weight on two
workers. Between them the samples are exchanged, in one of the paper's three schemes (section 4):

    a   all workers gather the whole batch's features, then compute the fully connected layers on all of it
    b   in pass i all workers compute on the samples of worker i
    c   in each pass every worker sends 1/K of its samples; the next pass's exchange overlaps this pass's compute
"""

from __future__ import annotations

from parallel.config import StrategyConfig, require_one_of
from parallel.graph import Graph
from parallel.plans import SCHEMES, Layout, Plan, make_plan
from parallel.strategies.strategy import Setting, first_fully_connected


def one_weird_trick(graph: Graph, workers: int, config: StrategyConfig, setting: Setting) -> Plan:
    """The hybrid plan; `config.scheme` is a, b or c (default a), `config.update` step or pass."""
    scheme = config.scheme or "a"
    require_one_of("strategy.scheme", scheme, SCHEMES)
    everyone = tuple(range(workers))
    return make_plan(
        graph,
        workers,
        {
            graph.ops[0].name: Layout(on=everyone, n=workers),
            first_fully_connected(graph).name: Layout(on=everyone, c=workers),
        },
        scheme=scheme,
        micro_batches=1 if scheme == "a" else workers,
        update=config.update,
    )
