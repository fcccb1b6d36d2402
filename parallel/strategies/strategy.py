"""What a strategy is: a function from the graph and the configuration to a plan."""

from __future__ import annotations

from collections.abc import Callable

from parallel.config import StrategyConfig
from parallel.graph import Graph
from parallel.ops import Op
from parallel.plan import Plan

Strategy = Callable[[Graph, int, StrategyConfig], Plan]
"""(graph, workers, configuration) → plan."""


def weighted(graph: Graph) -> list[Op]:
    """The ops that have parameters, in order."""
    return [op for op in graph if op.parameter_count]


def first_fully_connected(graph: Graph) -> Op:
    """The first op whose output and input are feature vectors and which has weights: fc6 in AlexNet."""
    for op in weighted(graph):
        if len(op.shape) == 1:
            return op
    raise ValueError("one_weird_trick needs a model with fully connected layers, and this one has none")
