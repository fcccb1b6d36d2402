"""The fastest plan that a search finds for this model, batch and cluster; kept in a file, and used again from there.

The named plans are candidates, too: what the search takes is never predicted to be slower than the best of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from parallel.cluster import Cluster, open_cluster
from parallel.config import StrategyConfig
from parallel.graph import Graph
from parallel.plans import Plan
from parallel.program.lowering import lower
from parallel.program.required_memory import memory_of
from parallel.search import Progress, SearchConfig, search, silent
from parallel.simulator.cost_model import CostModel
from parallel.simulator.simulate import simulate
from parallel.strategies.named import named_plans
from parallel.strategies.saved import SavedPlan, load, save
from parallel.strategies.strategy import Setting

FOUND = "found"
"""Label of the search's own plan among the candidates."""


@dataclass(frozen=True)
class Candidate:
    """A plan and what is predicted of it."""

    label: str
    plan: Plan
    predicted_step_s: float


def searched(graph: Graph, workers: int, config: StrategyConfig, setting: Setting) -> Plan:
    """The plan that an earlier search saved for the same, or else a search's."""
    cluster = open_cluster(setting.cluster, workers)
    saved = reusable(graph, workers, config, setting, cluster)
    return (saved or find(graph, workers, config, setting, cluster)[0]).plan


def workload_of(graph: Graph, workers: int, config: StrategyConfig, setting: Setting) -> str:
    """Hash of everything but the cluster that the plan depends on. Whether it is confirmed is no part of it."""
    parts = (repr(graph), workers, setting.batch_size, setting.precision, config.method, config.seed)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def path_of(workload: str, cluster: Cluster, config: StrategyConfig) -> Path:
    """Where the plan for a workload on a cluster is kept."""
    return Path(config.plans) / f"{workload}_{cluster.fingerprint}.yaml"


def reusable(graph: Graph, workers: int, config: StrategyConfig, setting: Setting, cluster: Cluster,
             ) -> SavedPlan | None:
    """What an earlier search saved for the same workload and cluster; None if there is none, or if it was not
    confirmed and shall be."""
    path = path_of(workload_of(graph, workers, config, setting), cluster, config)
    if not path.is_file():
        return None
    saved = load(path, graph, workers)
    return None if config.confirm and not saved.confirmed else saved


def find(graph: Graph, workers: int, config: StrategyConfig, setting: Setting, cluster: Cluster,
         progress: Progress = silent) -> tuple[SavedPlan, list[Candidate]]:
    """Search, and save what was found; with it, all candidates, the best predicted first.

    Raises `ValueError` if no plan of the space fits the memory, or nothing is left of the space.
    """
    named = named_plans(graph, workers, setting)
    found = search(graph, setting.batch_size, workers, cluster, setting.precision,
                   SearchConfig(method=config.method, seed=config.seed, time_limit_s=config.time_limit_s),
                   start=tuple(named.values()), progress=progress)
    cost_model = CostModel(graph, setting.batch_size, cluster, setting.precision)
    plans = {FOUND: found.plan, **{label: plan for label, plan in named.items() if str(plan) != str(found.plan)}}
    candidates = []
    for label, plan in plans.items():
        program = lower(graph, plan, setting.batch_size)
        if all(memory_of(program, w, setting.precision).total <= cluster.memory_bytes for w in range(workers)):
            step_s = simulate(program, cluster, setting.precision, cost_model).loaded_step_s
            candidates.append(Candidate(label, plan, step_s))
    candidates.sort(key=lambda c: (c.predicted_step_s, c.label != FOUND))
    workload = workload_of(graph, workers, config, setting)
    saved = SavedPlan(
        plan=candidates[0].plan, workload=workload, cluster=cluster.fingerprint, method=found.method, seed=config.seed,
        predicted_step_s=candidates[0].predicted_step_s, bound_step_s=found.bound_s, certificate=found.certificate,
    )
    keep(saved, cluster, config)
    return saved, candidates


def confirm(saved: SavedPlan, candidates: Sequence[Candidate], seconds: Sequence[float]) -> SavedPlan:
    """The fastest of the timed candidates, with the times of all."""
    best = min(range(len(candidates)), key=lambda i: seconds[i])
    confirmed = {candidate.label: round(s, 6) for candidate, s in zip(candidates, seconds, strict=True)}
    return dataclasses.replace(saved, plan=candidates[best].plan, confirmed=confirmed,
                               predicted_step_s=candidates[best].predicted_step_s)


def keep(saved: SavedPlan, cluster: Cluster, config: StrategyConfig) -> None:
    """Save the plan, in place of what was saved for the same."""
    save(saved, path_of(saved.workload, cluster, config))
