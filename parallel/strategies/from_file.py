"""A plan that was written by hand, or saved by an earlier run."""

from __future__ import annotations

from pathlib import Path

from parallel.config import StrategyConfig, require
from parallel.graph import Graph
from parallel.plans import Plan, read_plan
from parallel.strategies.strategy import Setting


def from_file(graph: Graph, workers: int, config: StrategyConfig, setting: Setting) -> Plan:
    """The plan in the file `config.path`."""
    require(config.path is not None, "strategy.path", None, "must name the plan file of strategy=from_file")
    path = Path(str(config.path))
    require(path.is_file(), "strategy.path", path, "is not a file")
    try:
        return read_plan(path.read_text(encoding="utf-8"), graph, workers)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
