"""A plan from a file, written by hand or by an earlier run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from parallel.config import StrategyConfig, require
from parallel.config.documents import read_text
from parallel.graph import Graph
from parallel.plans import Plan, read_plan


@dataclass(frozen=True)
class FromFile(StrategyConfig):
    """Which file."""

    name: str = "from_file"
    path: str | None = None
    """Path of the plan file; required."""

    def full_label(self, plan: str | None) -> str:
        """Return the label with the fingerprint of the plan, which the path does not determine."""
        return f"{self.label} plan {plan}"


def from_file(graph: Graph, workers: int, options: FromFile) -> Plan:
    """Return the plan in the file `options.path`."""
    require(options.path is not None, "strategy.path", None, "must name the plan file of strategy=from_file")
    path = Path(str(options.path))
    require(path.is_file(), "strategy.path", path, "is not a file")
    text = read_text(path)
    try:
        return read_plan(text, graph, workers)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
