"""Interface of strategies: options, and a function (graph, workers, options) → plan."""

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
    """A strategy whose plan depends only on graph, workers and options."""

    options: StrategyConfig
    """Default options."""
    build: Callable[[Graph, int, Any], Plan]
    """(graph, workers, options) → plan. Raises `ValueError` if they do not fit together."""


def weighted(graph: Graph) -> list[Op]:
    """Return the ops that have parameters, in order."""
    return [op for op in graph if op.parameter_count]
