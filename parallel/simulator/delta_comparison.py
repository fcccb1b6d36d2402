"""Delta against full simulation over the same random moves: do they agree to the bit, and how much faster is it?

What is timed for a move:

    delta     `DeltaSimulation.propose`: prices that no move before has asked for are computed, the others are there
    full      `full_step_s` from nothing: lower the changed plan, price all its parts, walk the whole program
    memoised  the same with the prices that delta has, too: what the shared memory of prices alone gives

FlexFlow's full simulation likewise builds its task graph anew (Jia et al. 2019, table 4).
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from random import Random

from parallel.plans import Layout, Plan
from parallel.simulator.cost_model import CostModel
from parallel.simulator.delta import DeltaSimulation, full_step_s
from parallel.simulator.random_moves import random_moves

UPHILL = 0.05
"""Share of the moves to longer steps that are taken, so that the walk leaves where it began."""


@dataclass(frozen=True)
class DeltaComparison:
    """What came of it: means over the moves in seconds."""

    moves: int
    compared: int
    """Moves that were fully simulated, too."""
    different: int
    """Of these, those whose step times were not the same float."""
    delta_s: float
    full_s: float
    memoised_s: float


def compare_with_full_simulation(cost_model: CostModel, workers: int, moves: int, seed: int, every: int = 1,
                                 full_every: int = 1) -> DeltaComparison:
    """Make random moves from the data-parallel plan; every so many are compared with the memoised full simulation, and
    of those every so many with the one from nothing."""
    graph, random = cost_model.graph, Random(seed)
    everyone = tuple(range(workers))
    start = {graph.ops[0].name: Layout(on=everyone, n=workers)}
    simulation = DeltaSimulation(cost_model, workers, start)
    delta_s = full_s = memoised_s = 0.0
    compared = full = different = 0
    proposals = random_moves(graph, workers, cost_model.batch_size, seed)
    for i, (name, layout) in enumerate(itertools.islice(proposals, moves)):
        begin = time.perf_counter()
        step_s = simulation.propose(name, layout)
        delta_s += time.perf_counter() - begin
        plan = Plan(workers=workers, layouts=simulation.proposed)
        if i % every == 0:
            compared += 1
            begin = time.perf_counter()
            same = full_step_s(plan, cost_model, memoised=True) == step_s
            memoised_s += time.perf_counter() - begin
            if i % (every * full_every) == 0:
                full += 1
                begin = time.perf_counter()
                same = same and full_step_s(plan, cost_model, memoised=False) == step_s
                full_s += time.perf_counter() - begin
            different += not same
        if step_s <= simulation.step_s or random.random() < UPHILL:
            simulation.accept()
        else:
            simulation.reject()
    return DeltaComparison(moves, compared, different, delta_s / moves, full_s / max(1, full),
                           memoised_s / max(1, compared))
