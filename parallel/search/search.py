"""The fastest plan for a model, a batch and a cluster, with a statement of how good it is.

    exact        the space of nested blocks (`space`) by dynamic programming (`exact`), then pipelines and passes
                 (`pipelines`) by branch and bound: what could beat the best plan so far is simulated
    mcmc         FlexFlow's Markov chain over the space, with delta simulation
    exhaustive   every plan of the space, and every pipeline and pass: the oracle for small cases

All of them start from the given plans, and never return a worse one. The memory of a worker is a limit: if the best
plan exceeds it (`parallel.program.required_memory`), the search is repeated among plans whose ops need less.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from parallel.cluster import Cluster
from parallel.config import SEARCHES, require, require_one_of
from parallel.graph import Graph
from parallel.graph.ops import DIMS
from parallel.plans import Plan, check_batch
from parallel.program import Program
from parallel.program.lowering import lower
from parallel.program.required_memory import memory_of
from parallel.search.cost_table import Ground
from parallel.search.exact import UNKNOWN, exact
from parallel.search.exhaustive import exhaustive
from parallel.search.mcmc import mcmc
from parallel.search.objective import Goal, Score
from parallel.search.op_bounds import LinkBounds
from parallel.search.pipelines import Pipelines, space_in_words
from parallel.search.proposal import Proposal, least_s
from parallel.search.result import Result
from parallel.search.space import Space, space_of
from parallel.simulator import CostModel
from parallel.simulator.delta import DeltaSimulation
from parallel.simulator.simulate import simulate

Progress = Callable[[str], None]
"""Hears of the best plan so far, a line now and then."""


def silent(text: str) -> None:
    """Hears nothing."""


@dataclass(frozen=True)
class SearchConfig:
    """How to search."""

    method: str = "exact"
    seed: int = 0
    """Of mcmc."""
    time_limit_s: float = 60.0
    """After that, the best plan so far is taken; for mcmc, the time to search."""
    dims: str = DIMS
    """In which ops may be split."""
    sizes: tuple[int, ...] | None = None
    """Of the blocks of workers that ops may be placed on. None: all that fit the cluster's nodes."""
    pipelines: bool = True
    """Pipelines and passes, too."""

    def __post_init__(self) -> None:
        require_one_of("search.method", self.method, SEARCHES)
        require(self.time_limit_s > 0, "search.time_limit_s", self.time_limit_s, "must be positive")


@dataclass(frozen=True)
class Found:
    """The best plan, and what is known of it."""

    plan: Plan
    step_s: float
    """Predicted seconds of a step, with what it waits for its images."""
    bound_s: float
    """Seconds that no plan of the searched space is faster than."""
    certificate: str
    """What is proven, in words."""
    method: str
    stopped: str | None
    """Why the search ended early; None: it did not."""
    looked_at: Mapping[str, int]
    """How many labels, plans or proposals of the space, exact prices of exchanges, and simulated plans."""
    seconds: float
    """That the search took."""

    @property
    def gap(self) -> float:
        """How much longer than the bound a step may be, as a share of it."""
        return self.step_s / self.bound_s - 1 if self.bound_s > 0 else math.inf


def search(graph: Graph, batch_size: int, workers: int, cluster: Cluster, precision: str,
           config: SearchConfig | None = None, *, start: Sequence[Plan] = (), progress: Progress = silent) -> Found:
    """The best plan for `graph` on so many workers of the cluster. `start` are plans that it must not be worse than.

    A KeyboardInterrupt ends it early, with the best plan so far. Raises `ValueError` if the space is empty, or no plan
    of it fits the memory.
    """
    return _Search(graph, batch_size, workers, cluster, precision, config or SearchConfig(), progress).run(start)


@dataclass
class _Best:
    """The best plan so far."""

    plan: Plan | None = None
    score: Score = UNKNOWN


@dataclass
class _Search:
    graph: Graph
    batch_size: int
    workers: int
    cluster: Cluster
    precision: str
    config: SearchConfig
    progress: Progress
    begun: float = field(default_factory=time.monotonic)
    simulated: set[Plan] = field(default_factory=set)

    def __post_init__(self) -> None:
        graph, cluster = self.graph, self.cluster
        self.space: Space = space_of(graph, self.batch_size, self.workers, cluster, self.config.dims, self.config.sizes)
        self.cost_model = CostModel(graph, self.batch_size, cluster, self.precision)
        self.ground = Ground(self.space, self.cost_model, cluster.overlap_slowdown)
        self.goal = Goal(self.space, cluster, self._timeline_s)
        self.best = _Best()

    def run(self, start: Sequence[Plan]) -> Found:
        inside, outside = self._given(start)
        limit: int | None = None
        while True:
            result = self._space(inside, limit)
            if result.chosen is None or result.score >= self.best.score:
                break
            plan = self.space.plan(result.chosen)
            need = self._need(lower(self.graph, plan, self.batch_size))
            if need <= self.cluster.memory_bytes:
                self.best = _Best(plan, result.score)
                break
            # Labels estimate less than `program.required_memory` counts: the limit shrinks by the difference.
            estimate = self.ground.memory(result.chosen)
            limit = min(limit - 1 if limit is not None else estimate - 1, self.cluster.memory_bytes - (need - estimate))
        left, why = self._others(outside)
        if self.best.plan is None:
            self._refuse()
        bound, stopped = min(result.bound, left, self.best.score), result.stopped or why
        return Found(self.best.plan, self.best.score.step_s, bound.step_s,
                     self._certificate(bound, result, stopped, limit),
                     self.config.method, stopped,
                     {"space": result.looked_at, "exchanges": self.ground.asked, "simulated": len(self.simulated)},
                     time.monotonic() - self.begun)

    def _given(self, start: Sequence[Plan]) -> tuple[list[dict[str, int]], list[Proposal]]:
        """The given plans that lie in the space, and the others."""
        inside: list[dict[str, int]] = []
        outside: list[Proposal] = []
        for plan in start:
            check_batch(self.graph, plan, self.batch_size)
            chosen = self.space.find(plan)
            if chosen is not None:
                inside.append(chosen)
            else:
                bound_s = least_s(self.graph, plan, self.batch_size, self.cost_model)
                outside.append(Proposal(bound_s, "given", lambda plan=plan: plan))  # type: ignore[misc]
        return inside, outside

    def _space(self, start: Sequence[Mapping[str, int]], limit: int | None) -> Result:
        """The best plan of the space by the method of the configuration."""
        method = self.config.method
        if method == "exact":
            bounds = LinkBounds(self.space, self.cluster, self.precision)
            return exact(self.ground, bounds, self.goal, start, known=self.best.score, memory_limit=limit,
                         stop=self._stop, progress=self._tell)
        if method == "exhaustive":
            return exhaustive(self.ground, self.goal, self.cost_model, memory_limit=limit, stop=self._stop,
                              progress=self._tell)
        return mcmc(self.ground, self.goal, self.cost_model, start, seed=self.config.seed,
                    budget_s=self.config.time_limit_s, memory_limit=limit, stop=self._stop, progress=self._tell)

    def _others(self, waiting: list[Proposal]) -> tuple[Score, str | None]:
        """Simulate those of the given plans, pipelines and passes that may be better. Returns a bound of all of them,
        and why it ended early."""
        prune = self.config.method != "exhaustive"

        def limit_s() -> float:
            return self.goal.limit_s(self.best.score) if prune else math.inf

        least = self.goal.least(0.0)
        try:
            if self.config.pipelines and self.config.method != "mcmc":
                pipelines = Pipelines(self.graph, self.batch_size, self.workers, self.cluster, self.cost_model)
                for proposal in pipelines.proposals(limit_s()):
                    waiting.append(proposal)
                    if len(waiting) % 1024 == 0 and (reason := self._stop()) is not None:
                        return least, reason
            waiting.sort(key=lambda proposal: proposal.bound_s)
            for number, proposal in enumerate(waiting):
                if proposal.bound_s >= limit_s():
                    break
                least = self.goal.least(proposal.bound_s)
                if (reason := self._stop()) is not None:
                    return least, reason
                self._simulate(proposal.make())
                if number % 64 == 63:
                    self._tell(self.best.score, min(least, self.best.score), number + 1, "other plans")
        except KeyboardInterrupt:
            return least, "interrupted"
        return UNKNOWN, None

    def _simulate(self, plan: Plan) -> None:
        """Take the plan if it is better than the best, and fits the memory."""
        if plan in self.simulated:
            return
        self.simulated.add(plan)
        program = lower(self.graph, plan, self.batch_size)
        timeline = simulate(program, self.cluster, self.precision, self.cost_model)
        score = self.goal.score_of(timeline)
        if score < self.best.score and self._need(program) <= self.cluster.memory_bytes:
            self.best = _Best(plan, score)

    def _timeline_s(self, chosen: Mapping[str, int]) -> float:
        """Of a plan of the space, simulated."""
        layouts = {name: self.space.layout(name, index) for name, index in chosen.items()}
        return DeltaSimulation(self.cost_model, self.workers, layouts).step_s - self.cluster.step_overhead_s

    def _need(self, program: Program) -> int:
        """Bytes of the worker with most: the first or the last of some op's block has its longest parts."""
        workers = {worker for layout in program.plan.layouts.values() for worker in (min(layout.on), max(layout.on))}
        return max(memory_of(program, worker, self.precision).total for worker in workers)

    def _stop(self) -> str | None:
        if self.config.method != "mcmc" and time.monotonic() - self.begun > self.config.time_limit_s:
            return f"the time limit of {self.config.time_limit_s:g} s"
        return None

    def _tell(self, score: Score, bound: Score, looked_at: int, what: str = "") -> None:
        what = what or {"exact": "labels", "mcmc": "proposals", "exhaustive": "plans"}[self.config.method]
        best = "none yet" if math.isinf(score.step_s) else f"{1000 * score.step_s:.3f} ms"
        proven = f", none below {1000 * bound.step_s:.3f} ms" if bound.step_s > 0 else ""
        self.progress(f"{looked_at:,} {what}: best {best}{proven}")

    def _refuse(self) -> NoReturn:
        """Say that no plan fits."""
        nbytes, leaders = self.ground.nbytes, self.space.leaders
        least = sum(min(sum(nbytes(op, i) for op in self.graph.names if leaders[op] == name)
                        for i in range(len(found))) for name, found in self.space.candidates.items())
        raise ValueError(f"memory={self.cluster.memory_bytes / 1e9:.2f} GB a worker of cluster {self.cluster.name} is "
                         f"too little for every plan: with trainer.batch_size={self.batch_size} and "
                         f"workers={self.workers} the ops alone need at least {least / 1e9:.2f} GB on one of them; the "
                         "model's copy, messages and images come on top")

    def _certificate(self, bound: Score, result: Result, stopped: str | None, limit: int | None) -> str:
        what = f"{self.space.count:.3g} plans on nested blocks"
        if limit is not None:
            what += f" whose ops need at most {limit / 1e9:.2f} GB a worker"
        what += f", {space_in_words(self.workers)}" if self.config.pipelines and self.config.method != "mcmc" else ""
        if self.config.method == "mcmc":
            return f"the best of {result.looked_at:,} random moves; nothing is proven"
        if stopped is None:
            return f"optimal: no plan is faster among {what}"
        if bound.step_s > 0:
            return (f"within {100 * (self.best.score.step_s / bound.step_s - 1):.2g} % of the optimum among {what}; "
                    f"ended by {stopped}")
        return f"the best so far; nothing is proven; ended by {stopped}"
