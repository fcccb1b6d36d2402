"""Every plan of a small space, one by one: the oracle that the exact method must agree with.

Plans are simulated (`simulator.delta`), not composed of labels, in an order in which few ops change
at a time.
"""

from __future__ import annotations

from parallel.config import require
from parallel.search.cost_table import plan_memory
from parallel.search.objective import Objective, Score
from parallel.search.result import UNKNOWN, Chosen, Limits, Result
from parallel.search.space import Space
from parallel.simulator import CostModel
from parallel.simulator.delta import DeltaSimulation

MOST = 5_000_000
"""Plans that take a few minutes."""
NOTHING = Score(0.0, 0.0)


def exhaustive(
    space: Space, objective: Objective, cost_model: CostModel, limits: Limits | None = None
) -> Result:
    """Return the best plan. Raises `ValueError` if the space has more than MOST plans."""
    require(
        space.count <= MOST,
        "search.method",
        "exhaustive",
        f"would simulate {space.count:.3g} plans, more than {MOST:,}; take exact",
    )
    limits = limits or Limits()
    names, overhead_s = space.decided, cost_model.cluster.step_overhead_s
    sizes = [len(space.candidates[name]) for name in names]
    at = [0] * len(names)
    simulation = DeltaSimulation(cost_model, space.workers, {name: space.layout(name, 0) for name in names})
    best: Chosen | None = None
    score, seen, stopped = UNKNOWN, 0, None
    step_s, more = simulation.step_s, True
    try:
        while more:
            plan = dict(zip(names, at, strict=True))
            seen += 1
            if limits.memory_bytes is None or plan_memory(space, cost_model, plan) <= limits.memory_bytes:
                found = objective.score(step_s - overhead_s, plan)
                if found < score:
                    score, best = found, plan
            if seen % 512 == 0:
                limits.progress(score, NOTHING, seen)
                stopped = limits.stop()
                if stopped is not None:
                    break
            more = False
            # The last op moves first: what comes before keeps its times.
            for i in reversed(range(len(names))):
                at[i] = (at[i] + 1) % sizes[i]
                if sizes[i] > 1:
                    step_s = simulation.propose(names[i], space.layout(names[i], at[i]))
                    simulation.accept()
                if at[i]:
                    more = True
                    break
    except KeyboardInterrupt:
        stopped = "interrupted"
    return Result(best, score, score if stopped is None else NOTHING, seen, stopped)
