"""What a strategy is: a function from the graph and the configuration to a plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from parallel.config import ClusterConfig, StrategyConfig
from parallel.graph import Graph
from parallel.graph.ops import Op
from parallel.plans import Plan


@dataclass(frozen=True)
class Setting:
    """What a searched plan depends on besides the graph, the workers and its own options."""

    batch_size: int = 128
    """Global."""
    precision: str = "fp32"
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


Strategy = Callable[[Graph, int, StrategyConfig, Setting], Plan]
"""(graph, workers, configuration, setting) → plan."""


def weighted(graph: Graph) -> list[Op]:
    """The ops that have parameters, in order."""
    return [op for op in graph if op.parameter_count]


def first_fully_connected(graph: Graph) -> Op:
    """The first op whose output and input are feature vectors and which has weights: fc6 in AlexNet."""
    for op in weighted(graph):
        if len(op.shape) == 1:
            return op
    raise ValueError("one_weird_trick needs a model with fully connected layers, and this one has none")
