"""FlexFlow's search (Jia et al. 2019, section 6): a Markov chain of plans.

    proposal   an op and one of its candidates, both drawn uniformly
    accepted   with probability min(1, exp(β · (old − new))), where old is the step of the current plan
    start      each of the given plans, and a random one; they share the time
    stop       when a chain's time is over, or half of it passed without a better plan

β = SHARPNESS / step of the chain's first plan, so that it means the same for steps of milliseconds
and of minutes. Every proposal is predicted by delta simulation (`simulator.delta`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from parallel.search.cost_table import plan_memory
from parallel.search.objective import Objective, Score
from parallel.search.result import UNKNOWN, Chosen, Limits, Result
from parallel.search.space import Space
from parallel.simulator import CostModel
from parallel.simulator.delta import DeltaSimulation

SHARPNESS = 200.0
"""A step longer by half a per cent of the first plan's is accepted with probability 1/e."""
NOTHING = Score(0.0, 0.0)


@dataclass(frozen=True)
class ChainOptions:
    """How long the chains run, and what they draw."""

    seed: int
    budget_s: float
    """Seconds for all chains together."""
    most: int | None = None
    """Most proposals of a chain; None: no limit. If the budget is not used up, the same seed gives the
    same plan."""
    now: Callable[[], float] = time.monotonic


def mcmc(
    space: Space,
    objective: Objective,
    cost_model: CostModel,
    start: Sequence[Chosen],
    options: ChainOptions,
    limits: Limits | None = None,
) -> Result:
    """Return the best plan that the chains find."""
    return _Chains(space, objective, cost_model, options, limits or Limits()).run(start)


class _Chains:
    def __init__(
        self, space: Space, objective: Objective, cost_model: CostModel, options: ChainOptions, limits: Limits
    ) -> None:
        self.space, self.objective, self.cost_model = space, objective, cost_model
        self.options, self.limits = options, limits
        self.random = Random(options.seed)
        self.best: Chosen | None = None
        self.score, self.proposals = UNKNOWN, 0

    def run(self, start: Sequence[Chosen]) -> Result:
        anything = {name: self.random.randrange(len(found)) for name, found in self.space.candidates.items()}
        starts = [dict(plan) for plan in start] + [anything]
        stopped: str | None = None
        try:
            for plan in starts:
                stopped = self._chain(plan, self.options.budget_s / len(starts))
                if stopped is not None:
                    break
        except KeyboardInterrupt:
            stopped = "interrupted"
        return Result(self.best, self.score, NOTHING, self.proposals, stopped)

    def _chain(self, current: dict[str, int], budget_s: float) -> str | None:
        """Run one chain; return why it ended early, if it did."""
        space, now, random, most = self.space, self.options.now, self.random, self.options.most
        overhead_s = self.cost_model.cluster.step_overhead_s
        layouts = {name: space.layout(name, index) for name, index in current.items()}
        simulation = DeltaSimulation(self.cost_model, space.workers, layouts)
        old = self.objective.score(simulation.step_s - overhead_s, current)
        beta, begun, own = SHARPNESS / old.total_s, now(), 0
        improved = begun
        if self._fits(current) and old < self.score:
            self.score, self.best = old, dict(current)
        while now() - begun < budget_s and now() - improved < budget_s / 2 and (most is None or own < most):
            own += 1
            self.proposals += 1
            name = random.choice(space.decided)
            index = random.randrange(len(space.candidates[name]))
            moved = {**current, name: index}
            new = self.objective.score(
                simulation.propose(name, space.layout(name, index)) - overhead_s, moved
            )
            if self._fits(moved) and random.random() < math.exp(min(0.0, beta * (old.total_s - new.total_s))):
                simulation.accept()
                current, old = moved, new
                if new < self.score:
                    self.score, self.best, improved = new, dict(moved), now()
            if own % 512 == 0:
                self.limits.progress(self.score, NOTHING, self.proposals)
                if (reason := self.limits.stop()) is not None:
                    return reason
        return None

    def _fits(self, plan: Chosen) -> bool:
        limit = self.limits.memory_bytes
        return limit is None or plan_memory(self.space, self.cost_model, plan) <= limit
