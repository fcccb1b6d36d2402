"""Files of plans that a search found: a header with the prediction and the request, then the plan.

    searched:
      workload: 5f0c…           hash of model, batch, precision, workers and options of the search
      cluster: 1a2b3c4d         fingerprint of the cluster that it was predicted on
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

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from parallel.config import require
from parallel.graph import Graph
from parallel.plans import Plan, read_plan


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
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(str(kept), encoding="utf-8")
    beside.replace(path)


def load(path: Path, graph: Graph, workers: int) -> KeptPlan:
    """Read the plan of a file. Raises `ValueError` if it is damaged or of another model."""
    text = path.read_text(encoding="utf-8")
    try:
        plan = read_plan(text, graph, workers)
        head = yaml.safe_load(text).get("searched")
        require(isinstance(head, dict), "searched", head, "must be the mapping that the search wrote")
        return KeptPlan(
            plan=plan,
            workload=str(head["workload"]),
            cluster=str(head["cluster"]),
            method=str(head["method"]),
            seed=int(head["seed"]),
            predicted_step_s=float(head["predicted_step_s"]),
            bound_step_s=float(head["bound_step_s"]),
            certificate=str(head["certificate"]),
            confirmed={str(name): float(seconds) for name, seconds in head["confirmed"].items()},
        )
    except KeyError as error:
        raise ValueError(f"{path}: searched has no {error}; delete the file to search again") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}; delete the file to search again") from error
