"""FlexFlow's search (Jia et al. 2019, section 6): a Markov chain of plans, each with one op moved at random.

    proposal   an op, and any candidate for it, both drawn uniformly
    accepted   with probability min(1, exp(β · (old − new))), where old is the step of the current plan, not of the best
    start      each of the given plans, and a random one; they share the time
    stop       of a chain: its time is over, or no better plan was found for half of it

β = SHARPNESS / step of the chain's first plan, so that it means the same for steps of milliseconds and of minutes.
Every proposal is priced by delta simulation (`simulator.delta`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from random import Random

from parallel.search.cost_table import Ground
from parallel.search.objective import Goal, Score
from parallel.search.result import Result
from parallel.simulator import CostModel
from parallel.simulator.delta import DeltaSimulation

SHARPNESS = 200.0
"""A step longer by half a per cent of the first plan's is accepted with probability 1/e."""


def mcmc(ground: Ground, goal: Goal, cost_model: CostModel, start: Sequence[Mapping[str, int]], *, seed: int,
         budget_s: float, most: int | None = None, memory_limit: int | None = None,
         stop: Callable[[], str | None] = lambda: None,
         progress: Callable[[Score, Score, int], None] = lambda best, bound, proposals: None,
         now: Callable[[], float] = time.monotonic) -> Result:
    """The best plan that the chains come by. `most` limits the proposals of a chain: then, and with a time that is not
    used up, the same seed gives the same plan."""
    random, space = Random(seed), ground.space
    anything = {name: random.randrange(len(found)) for name, found in space.candidates.items()}
    starts = [dict(plan) for plan in start] + [anything]
    best: Mapping[str, int] | None = None
    score, proposals, nothing = Score(math.inf, math.inf), 0, Score(0.0, 0.0)
    names, overhead_s = space.decided, cost_model.cluster.step_overhead_s
    stopped: str | None = None
    try:
        for current in starts:
            layouts = {name: space.layout(name, index) for name, index in current.items()}
            simulation = DeltaSimulation(cost_model, space.workers, layouts)
            old = goal.score(simulation.step_s - overhead_s, current)
            beta, begun = SHARPNESS / old.total_s, now()
            budget = budget_s / len(starts)
            improved, own = begun, 0
            if (memory_limit is None or ground.memory(current) <= memory_limit) and old < score:
                score, best = old, dict(current)
            while now() - begun < budget and now() - improved < budget / 2 and (most is None or own < most):
                own += 1
                proposals += 1
                name = random.choice(names)
                index = random.randrange(len(space.candidates[name]))
                moved = {**current, name: index}
                new = goal.score(simulation.propose(name, space.layout(name, index)) - overhead_s, moved)
                fits = memory_limit is None or ground.memory(moved) <= memory_limit
                if fits and random.random() < math.exp(min(0.0, beta * (old.total_s - new.total_s))):
                    simulation.accept()
                    current, old = moved, new
                    if new < score:
                        score, best, improved = new, dict(moved), now()
                if own % 512 == 0:
                    progress(score, nothing, proposals)
                    stopped = stop()
                    if stopped is not None:
                        return Result(best, score, nothing, proposals, stopped)
    except KeyboardInterrupt:
        stopped = "interrupted"
    return Result(best, score, nothing, proposals, stopped)
