"""Every plan of a small space, one by one: the oracle that the exact method has to agree with.

The plans are simulated (`simulator.delta`), not folded as labels, in an order in which one op moves at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from parallel.config import require
from parallel.search.cost_table import Ground
from parallel.search.objective import Goal, Score
from parallel.search.result import Result
from parallel.simulator import CostModel
from parallel.simulator.delta import DeltaSimulation

MOST = 5_000_000
"""Plans: some minutes."""


def exhaustive(ground: Ground, goal: Goal, cost_model: CostModel, *, memory_limit: int | None = None,
               stop: Callable[[], str | None] = lambda: None,
               progress: Callable[[Score, Score, int], None] = lambda best, bound, plans: None) -> Result:
    """The best plan. Raises `ValueError` for a space of too many."""
    space = ground.space
    require(space.count <= MOST, "search.method", "exhaustive", f"would simulate {space.count:.3g} plans, more than "
            f"{MOST:,}; take exact")
    names, nothing = space.decided, Score(0.0, 0.0)
    sizes = [len(space.candidates[name]) for name in names]
    at = [0] * len(names)
    simulation = DeltaSimulation(cost_model, space.workers, {name: space.layout(name, 0) for name in names})
    overhead_s = cost_model.cluster.step_overhead_s
    best: Mapping[str, int] | None = None
    score, seen, stopped = Score(math.inf, math.inf), 0, None
    step_s, more = simulation.step_s, True
    try:
        while more:
            plan = dict(zip(names, at, strict=True))
            seen += 1
            if memory_limit is None or ground.memory(plan) <= memory_limit:
                found = goal.score(step_s - overhead_s, plan)
                if found < score:
                    score, best = found, plan
            if seen % 512 == 0:
                progress(score, nothing, seen)
                stopped = stop()
                if stopped is not None:
                    break
            more = False
            for i in reversed(range(len(names))):  # the last op moves first: what comes before keeps its times
                at[i] = (at[i] + 1) % sizes[i]
                if sizes[i] > 1:
                    step_s = simulation.propose(names[i], space.layout(names[i], at[i]))
                    simulation.accept()
                if at[i]:
                    more = True
                    break
    except KeyboardInterrupt:
        stopped = "interrupted"
    return Result(best, score, score if stopped is None else nothing, seen, stopped)
