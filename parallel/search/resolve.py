"""The plan of `strategy=searched`: one that an earlier search kept for the same request, or a new one.

The named plans are candidates too, so that the result is never predicted to be slower than the best
of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parallel.cluster import Cluster
from parallel.config import Searched
from parallel.graph import Graph
from parallel.plans import Plan
from parallel.program.required_memory import memory_of
from parallel.search.kept_plans import KeptPlan, load, save
from parallel.search.search import Progress, SearchConfig, search, silent
from parallel.simulator.cost_model import CostModel
from parallel.simulator.simulate import lower_on, simulate

FOUND = "found"
"""Label of the search's own plan among the candidates."""


@dataclass(frozen=True, eq=False)
class Request:
    """What to find a plan for."""

    graph: Graph
    workers: int
    batch_size: int
    """Global."""
    precision: str
    cluster: Cluster
    options: Searched

    @property
    def workload(self) -> str:
        """Hash of everything that the plan depends on except the cluster and the options of confirming."""
        parts = (
            repr(self.graph),
            self.workers,
            self.batch_size,
            self.precision,
            self.options.method,
            self.options.seed,
            self.options.time_limit_s,
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    @property
    def path(self) -> Path:
        """File in which the plan is kept."""
        return Path(self.options.plans) / f"{self.workload}_{self.cluster.digest}.yaml"


@dataclass(frozen=True)
class Candidate:
    """A plan and its predicted time."""

    label: str
    plan: Plan
    predicted_step_s: float


def resolve(request: Request, named: Mapping[str, Plan], progress: Progress = silent) -> Plan:
    """Return the kept plan, or search for one. Raises `ValueError` as `find`."""
    kept = reuse(request)
    return (kept or find(request, named, progress)[0]).plan


def reuse(request: Request) -> KeptPlan | None:
    """Return the kept plan of an earlier search, or None.

    None also if the plan is to be confirmed by timing and was not.
    """
    if not request.path.is_file():
        return None
    kept = load(request.path, request.graph, request.workers)
    return None if request.options.confirm and not kept.confirmed else kept


def find(
    request: Request, named: Mapping[str, Plan], progress: Progress = silent
) -> tuple[KeptPlan, list[Candidate]]:
    """Search, and keep the plan found; return it with all candidates, the best predicted first.

    Raises `ValueError` if no plan of the space fits the memory, or nothing is left of the space.
    """
    options = request.options
    found = search(
        request.graph,
        request.batch_size,
        request.workers,
        request.cluster,
        request.precision,
        SearchConfig(method=options.method, seed=options.seed, time_limit_s=options.time_limit_s),
        start=tuple(named.values()),
        progress=progress,
    )
    plans = {
        FOUND: found.plan,
        **{label: plan for label, plan in named.items() if str(plan) != str(found.plan)},
    }
    candidates = _candidates(request, plans)
    kept = KeptPlan(
        plan=candidates[0].plan,
        workload=request.workload,
        cluster=request.cluster.digest,
        method=found.method,
        seed=options.seed,
        predicted_step_s=candidates[0].predicted_step_s,
        bound_step_s=found.bound_s,
        certificate=found.certificate,
    )
    keep(kept, request)
    return kept, candidates


def _candidates(request: Request, plans: Mapping[str, Plan]) -> list[Candidate]:
    """Predict the plans that fit the memory, the fastest first; of equals, the search's own."""
    graph, batch_size, cluster = request.graph, request.batch_size, request.cluster
    cost_model = CostModel(graph, batch_size, cluster, request.precision)
    candidates = []
    for label, plan in plans.items():
        program = lower_on(cluster, graph, plan, batch_size)
        needs = [memory_of(program, worker, request.precision).total for worker in range(request.workers)]
        if max(needs) <= cluster.memory_bytes:
            step_s = simulate(program, cluster, request.precision, cost_model).loaded_step_s
            candidates.append(Candidate(label, plan, step_s))
    return sorted(candidates, key=lambda c: (c.predicted_step_s, c.label != FOUND))


def confirm(kept: KeptPlan, candidates: Sequence[Candidate], seconds: Sequence[float]) -> KeptPlan:
    """Return the fastest of the timed candidates, with the times of all."""
    best = min(range(len(candidates)), key=lambda i: seconds[i])
    confirmed = {candidate.label: round(s, 6) for candidate, s in zip(candidates, seconds, strict=True)}
    return dataclasses.replace(
        kept,
        plan=candidates[best].plan,
        confirmed=confirmed,
        predicted_step_s=candidates[best].predicted_step_s,
    )


def keep(kept: KeptPlan, request: Request) -> None:
    """Keep the plan in place of what was kept for the same request."""
    save(kept, request.path)
