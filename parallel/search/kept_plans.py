"""Files of plans that a search found: a header with the prediction and the request, then the plan.

    searched:
      workload: 5f0c…           hash of model, batch, precision, workers and options of the search
      cluster: 1a2b3c4d         digest of the cluster that it was predicted on
      method: exact
      seed: 0
      predicted_step_s: 0.3141
      bound_step_s: 0.3141      no plan of the search's space is predicted to be faster
      certificate: …
      confirmed: {found: 0.3205, data_parallel: 0.5511}     measured seconds a step, if candidates were timed
    workers: 2
    …

`strategy=from_file` reads the same files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from parallel.config import printable, require, require_number
from parallel.config.checks import MOST_SECONDS, SEEDS
from parallel.config.documents import from_yaml, read_text
from parallel.config.typed import structure
from parallel.graph import Graph
from parallel.plans import Plan, read_plan
from parallel.results.json_files import write_atomically


@dataclass(frozen=True)
class KeptPlan:
    """A plan that a search found, with its prediction."""

    plan: Plan
    workload: str
    cluster: str
    method: str
    seed: int
    predicted_step_s: float
    bound_step_s: float
    certificate: str
    confirmed: Mapping[str, float] = field(default_factory=dict)
    """Measured seconds per step, by candidate; empty if only predictions were compared."""

    def __post_init__(self) -> None:
        require(
            printable(self.certificate) == self.certificate,
            "certificate",
            self.certificate,
            "must not have control characters",
        )
        require_number("seed", self.seed, 0, SEEDS - 1)
        times = {
            "predicted_step_s": self.predicted_step_s,
            "bound_step_s": self.bound_step_s,
            **self.confirmed,
        }
        for name, seconds in times.items():
            require_number(name, seconds, 0, MOST_SECONDS)

    def __str__(self) -> str:
        head = {
            "workload": self.workload,
            "cluster": self.cluster,
            "method": self.method,
            "seed": self.seed,
            "predicted_step_s": self.predicted_step_s,
            "bound_step_s": self.bound_step_s,
            "certificate": self.certificate,
            "confirmed": dict(self.confirmed),
        }
        return yaml.safe_dump({"searched": head}, sort_keys=False, width=120, allow_unicode=True) + str(
            self.plan
        )


def save(kept: KeptPlan, path: Path) -> None:
    """Write the file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, str(kept).encode())


def load(path: Path, graph: Graph, workers: int) -> KeptPlan:
    """Read the plan of a file. Raises `ValueError` if it is damaged or of another model."""
    text = read_text(path)
    try:
        return read_kept(text, graph, workers)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; delete the file to search again") from error


def read_kept(text: str, graph: Graph, workers: int) -> KeptPlan:
    """Return the plan that `str` made the text of. Raises `ValueError` as `load`."""
    plan = read_plan(text, graph, workers)
    head = structure(_Head, from_yaml(text).get("searched"), "searched")
    return KeptPlan(plan, **vars(head))


@dataclass(frozen=True)
class _Head:
    """The header of a plan file: the fields of `KeptPlan` other than the plan."""

    workload: str
    cluster: str
    method: str
    seed: int
    predicted_step_s: float
    bound_step_s: float
    certificate: str
    confirmed: Mapping[str, float]
