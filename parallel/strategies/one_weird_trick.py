"""One weird trick: convolutions split in n, fully connected layers in c (Krizhevsky 2014).

Convolutions have most of the compute but few weights, so with a split in n there is little to
synchronise. Fully connected layers have most of the weights but small activations; with a split in
c no weight is held twice. Between the two kinds of layer, features are exchanged in one of the
paper's three schemes (section 4):

    a   all workers gather the features of the whole batch and compute the fully connected layers
    b   in pass i, all workers compute on the samples of worker i
    c   in each pass, every worker sends 1/K of its samples; the exchange of the next pass overlaps
        with the compute of this one
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
    """The exchange before the fully connected layers, and when their weights are updated."""

    name: str = "one_weird_trick"
    scheme: str = "a"
    """Scheme of the exchange: a, b or c, see above."""
    update: str = "step"
    """Update of the fully connected weights: once per step (exact SGD), or in every pass (the
    paper's variable batch size)."""

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
