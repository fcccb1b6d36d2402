"""Search for the fastest plan, with a statement of how good it is.

    exact        the space of nested blocks (`space`) by label setting (`exact`), then pipelines and
                 passes (`pipelines`) by branch and bound: what may beat the best plan is simulated
    mcmc         FlexFlow's Markov chain over the space, with delta simulation
    exhaustive   every plan of the space, and every pipeline and pass, for small cases

All methods start from the given plans and never return a worse one. The memory of a worker is a
limit: if the best plan exceeds it (`parallel.program.required_memory`), the search is repeated among
plans whose ops need less.
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
from parallel.program.required_memory import memory_of
from parallel.search.cost_table import CostTable, op_memory, plan_memory
from parallel.search.exact import exact
from parallel.search.exhaustive import exhaustive
from parallel.search.mcmc import ChainOptions, mcmc
from parallel.search.objective import Objective, Score
from parallel.search.pipelines import Pipelines, space_in_words
from parallel.search.proposal import Proposal, least_s
from parallel.search.result import UNKNOWN, Limits, Result
from parallel.search.space import Space, space_of
from parallel.simulator import CostModel
from parallel.simulator.delta import DeltaSimulation
from parallel.simulator.simulate import lower_on, simulate

Progress = Callable[[str], None]
"""Receives a line about the best plan so far, now and then."""


def silent(text: str) -> None:
    """Ignore progress."""


@dataclass(frozen=True)
class SearchConfig:
    """Options of a search."""

    method: str = "exact"
    seed: int = 0
    """Seed of mcmc."""
    time_limit_s: float = 60.0
    """Seconds after which the best plan so far is returned; for mcmc, the time of the search."""
    dims: str = DIMS
    """Dims in which ops may be split."""
    sizes: tuple[int, ...] | None = None
    """Sizes of the blocks of workers for ops. None: all that fit the cluster's nodes."""
    pipelines: bool = True
    """Whether to search pipelines and passes too."""

    def __post_init__(self) -> None:
        require_one_of("search.method", self.method, SEARCHES)
        require(self.time_limit_s > 0, "search.time_limit_s", self.time_limit_s, "must be positive")


@dataclass(frozen=True)
class Found:
    """The best plan, and what is known about it."""

    plan: Plan
    step_s: float
    """Predicted seconds of a step, with the wait for images."""
    bound_s: float
    """Lower bound of the step of every plan in the space, in seconds."""
    certificate: str
    """What is proved, in words."""
    method: str
    stopped: str | None
    """Why the search ended early; None if it did not."""
    looked_at: Mapping[str, int]
    """Counts: labels, plans or proposals of the space; exact costs of exchanges; simulated plans."""
    seconds: float
    """Seconds of the search."""

    @property
    def gap(self) -> float:
        """Relative gap: step / bound − 1."""
        return self.step_s / self.bound_s - 1 if self.bound_s > 0 else math.inf


def search(
    graph: Graph,
    batch_size: int,
    workers: int,
    cluster: Cluster,
    precision: str,
    config: SearchConfig | None = None,
    *,
    start: Sequence[Plan] = (),
    progress: Progress = silent,
) -> Found:
    """Return the best plan for `graph` on a number of workers of the cluster.

    It is not slower than any plan of `start`. A KeyboardInterrupt ends the search early, with the
    best plan so far. Raises `ValueError` if the space is empty, or if none of its plans fits the
    memory.
    """
    return _Search(graph, batch_size, workers, cluster, precision, config or SearchConfig(), progress).run(
        start
    )


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
    exchanges: int = 0
    """Number of exact costs of exchanges that were computed."""

    def __post_init__(self) -> None:
        graph, cluster = self.graph, self.cluster
        self.space: Space = space_of(
            graph, self.batch_size, self.workers, cluster, self.config.dims, self.config.sizes
        )
        self.cost_model = CostModel(graph, self.batch_size, cluster, self.precision)
        self.objective = Objective(self.space, cluster, self._timeline_s)
        self.best = _Best()

    def run(self, start: Sequence[Plan]) -> Found:
        inside, outside = self._given(start)
        limit: int | None = None
        while True:
            result = self._space(inside, limit)
            if result.chosen is None or result.score >= self.best.score:
                break
            plan = self.space.plan(result.chosen)
            need = self._need(lower_on(self.cluster, self.graph, plan, self.batch_size))
            if need <= self.cluster.memory_bytes:
                self.best = _Best(plan, result.score)
                break
            # Labels count less memory than `program.required_memory`: the limit shrinks by the difference.
            estimate = plan_memory(self.space, self.cost_model, result.chosen)
            limit = min(
                limit - 1 if limit is not None else estimate - 1,
                self.cluster.memory_bytes - (need - estimate),
            )
        left, why = self._others(outside)
        stopped = result.stopped or why
        if self.best.plan is None:
            self._refuse(stopped)
        bound = min(result.bound, left, self.best.score)
        return Found(
            self.best.plan,
            self.best.score.step_s,
            bound.step_s,
            self._certificate(bound, result, stopped, limit),
            self.config.method,
            stopped,
            {"space": result.looked_at, "exchanges": self.exchanges, "simulated": len(self.simulated)},
            time.monotonic() - self.begun,
        )

    def _given(self, start: Sequence[Plan]) -> tuple[list[dict[str, int]], list[Proposal]]:
        """Return the given plans that are in the space, and the others."""
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
        """Return the best plan of the space by the configured method."""
        method, limits = self.config.method, Limits(self.best.score, limit, self._stop, self._tell)
        if method == "exact":
            table = CostTable(self.space, self.cost_model)
            result = exact(table, self.objective, start, limits)
            self.exchanges += table.exact_exchanges
            return result
        if method == "exhaustive":
            return exhaustive(self.space, self.objective, self.cost_model, limits)
        options = ChainOptions(self.config.seed, self.config.time_limit_s)
        return mcmc(self.space, self.objective, self.cost_model, start, options, limits)

    def _others(self, waiting: list[Proposal]) -> tuple[Score, str | None]:
        """Simulate the given plans, pipelines and passes that may be better than the best plan.

        Returns a bound of all of them, and why it ended early.
        """
        prune = self.config.method != "exhaustive"

        def limit_s() -> float:
            return self.objective.limit_s(self.best.score) if prune else math.inf

        least = self.objective.least(0.0)
        try:
            if self.config.pipelines and self.config.method != "mcmc":
                pipelines = Pipelines(
                    self.graph, self.batch_size, self.workers, self.cluster, self.cost_model
                )
                for proposal in pipelines.proposals(limit_s()):
                    waiting.append(proposal)
                    if len(waiting) % 1024 == 0 and (reason := self._stop()) is not None:
                        return least, reason
            waiting.sort(key=lambda proposal: proposal.bound_s)
            for number, proposal in enumerate(waiting):
                if proposal.bound_s >= limit_s():
                    break
                least = self.objective.least(proposal.bound_s)
                if (reason := self._stop()) is not None:
                    return least, reason
                self._simulate(proposal.make())
                if number % 64 == 63:
                    self._tell(self.best.score, min(least, self.best.score), number + 1, "other plans")
        except KeyboardInterrupt:
            return least, "interrupted"
        return UNKNOWN, None

    def _simulate(self, plan: Plan) -> None:
        """Simulate a plan, and keep it if it is better than the best and fits the memory."""
        if plan in self.simulated:
            return
        self.simulated.add(plan)
        program = lower_on(self.cluster, self.graph, plan, self.batch_size)
        timeline = simulate(program, self.cluster, self.precision, self.cost_model)
        score = self.objective.score_of(timeline)
        if score < self.best.score and self._need(program) <= self.cluster.memory_bytes:
            self.best = _Best(plan, score)

    def _timeline_s(self, chosen: Mapping[str, int]) -> float:
        """Return the simulated timeline of a plan of the space, in seconds."""
        layouts = {name: self.space.layout(name, index) for name, index in chosen.items()}
        return DeltaSimulation(self.cost_model, self.workers, layouts).step_s - self.cluster.step_overhead_s

    def _need(self, program: Program) -> int:
        """Return the bytes of the worker that needs most: the first or last worker of some op's block."""
        workers = {
            worker for layout in program.plan.layouts.values() for worker in (min(layout.on), max(layout.on))
        }
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

    def _refuse(self, stopped: str | None) -> NoReturn:
        """Raise `ValueError`: no plan fits the memory, or none was found before the search ended."""
        if stopped is not None:
            raise ValueError(
                f"memory={self.cluster.memory_bytes / 1e9:.2f} GB a worker of cluster {self.cluster.name}: "
                f"no plan that fits was found before the search was ended by {stopped}"
            )
        leaders = self.space.leaders
        least = sum(
            min(
                sum(
                    op_memory(self.space, self.cost_model, op, i)
                    for op in self.graph.names
                    if leaders[op] == name
                )
                for i in range(len(found))
            )
            for name, found in self.space.candidates.items()
        )
        raise ValueError(
            f"memory={self.cluster.memory_bytes / 1e9:.2f} GB a worker of cluster {self.cluster.name} is "
            f"too little for every plan: with trainer.batch_size={self.batch_size} and "
            f"workers={self.workers} the ops alone need at least {least / 1e9:.2f} GB on one of them; the "
            "model's copy, messages and images come on top"
        )

    def _certificate(self, bound: Score, result: Result, stopped: str | None, limit: int | None) -> str:
        what = self.space.in_words
        if limit is not None:
            what += f" whose ops need at most {limit / 1e9:.2f} GB a worker"
        what += (
            f", {space_in_words(self.workers)}"
            if self.config.pipelines and self.config.method != "mcmc"
            else ""
        )
        if self.config.method == "mcmc":
            return f"the best of {result.looked_at:,} random moves; nothing is proved"
        if stopped is None:
            return f"optimal: no plan is faster among {what}"
        if bound.step_s > 0:
            return (
                f"within {100 * (self.best.score.step_s / bound.step_s - 1):.2g} % of the optimum among {what}; "
                f"ended by {stopped}"
            )
        return f"the best so far; nothing is proved; ended by {stopped}"
