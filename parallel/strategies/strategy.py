"""What a strategy is: its options, and a function from a graph, a number of workers and the options to a plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from parallel.config import StrategyConfig
from parallel.graph import Graph
from parallel.graph.ops import Op
from parallel.plans import Plan


@dataclass(frozen=True)
class Strategy:
    """A strategy that makes its plan from the graph alone."""

    options: StrategyConfig
    """Its options with their defaults."""
    build: Callable[[Graph, int, Any], Plan]
    """(graph, workers, options) → plan. Raises `ValueError` where the model, the workers and the options do not fit."""


def weighted(graph: Graph) -> list[Op]:
    """Return the ops that have parameters, in order."""
    return [op for op in graph if op.parameter_count]
