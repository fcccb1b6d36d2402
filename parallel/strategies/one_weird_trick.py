"""Convolutions split over the samples, fully connected layers over the features (Krizhevsky 2014).

Convolutions have most of the compute and few weights: splitting the samples leaves little to synchronise. Fully
connected layers have most of the weights and small activations: splitting the features leaves no weight on two
workers. Between them the samples are exchanged, in one of the paper's three schemes (section 4):

    a   all workers gather the whole batch's features, then compute the fully connected layers on all of it
    b   in pass i all workers compute on the samples of worker i
    c   in each pass every worker sends 1/K of its samples; the next pass's exchange overlaps this pass's compute
"""

from __future__ import annotations

from dataclasses import dataclass

from parallel.config import UPDATES, StrategyConfig, require_one_of
from parallel.graph import Graph
from parallel.graph.ops import Op
from parallel.plans import SCHEMES, Layout, Plan, make_plan
from parallel.strategies.strategy import weighted


@dataclass(frozen=True)
class OneWeirdTrick(StrategyConfig):
    """The exchange between convolutions and fully connected layers, and when the latter are updated."""

    name: str = "one_weird_trick"
    scheme: str = "a"
    """a, b or c: see above."""
    update: str = "step"
    """Fully connected weights are updated once per step (exact SGD) or every pass (the paper's variable batch)."""

    def __post_init__(self) -> None:
        require_one_of("strategy.scheme", self.scheme, SCHEMES)
        require_one_of("strategy.update", self.update, UPDATES)


def one_weird_trick(graph: Graph, workers: int, options: OneWeirdTrick) -> Plan:
    """Return the hybrid plan."""
    everyone = tuple(range(workers))
    return make_plan(
        graph,
        workers,
        {
            graph.ops[0].name: Layout(on=everyone, n=workers),
            first_fully_connected(graph).name: Layout(on=everyone, c=workers),
        },
        scheme=options.scheme,
        micro_batches=1 if options.scheme == "a" else workers,
        update=options.update,
    )


def first_fully_connected(graph: Graph) -> Op:
    """Return the first op with weights whose output is a feature vector: fc6 in AlexNet."""
    for op in weighted(graph):
        if len(op.shape) == 1:
            return op
    raise ValueError("one_weird_trick needs a model with fully connected layers, and this one has none")
