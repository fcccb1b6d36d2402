"""Measure core contention: the slowdown of computing while other workers of the node compute."""

from __future__ import annotations

from sklearn.isotonic import IsotonicRegression

from parallel.calibration.samples import rounded, trimmed_mean
from parallel.calibration.setup import Setup
from parallel.calibration.step_overhead import IsolatedStep

ROUNDS = 6
"""Steps of each number of workers."""


def measure_core_contention(setup: Setup, step: IsolatedStep) -> tuple[float, ...]:
    """Return `Cluster.core_contention`, from steps on the first 1, 2, … workers of each node.

    Ops are measured with `setup.computing_per_node` workers at once, so the factor for that number
    is 1. Nodes with fewer workers do not count in the factors of more. Times are those of a worker
    of speed 1.
    """
    world = setup.world
    if world.size == 1:
        return ()
    setup.progress.phase("core contention")
    speed = setup.speeds[world.rank] if setup.speeds else 1.0
    samples: list[list[float]] = [[] for _ in range(setup.workers_per_node)]
    for _ in range(ROUNDS):
        for count, seconds in enumerate(samples, start=1):
            computes = setup.place < count
            counts = computes and len(world.host.workers) >= count
            world.barrier()
            taken_s = step.run() if computes else 0.0
            own = taken_s * speed if counts else None
            seconds += [taken for taken in world.gather(own) if taken is not None]
    rising = IsotonicRegression().fit_transform(
        range(len(samples)), [trimmed_mean(seconds) for seconds in samples]
    )
    return tuple(rounded(seconds / rising[setup.computing_per_node - 1]) for seconds in rising)
