"""Measure the speed of each worker relative to the reference workers, whose speed is 1.

All workers run whole steps of the model, each computing everything, for the same time:

    seconds[w][b]   seconds of a step of worker w in block b
    ratio[w]        median over b of min over v of seconds[v][b] ÷ seconds[w][b]
    speeds[w]       ratio[w] ÷ ratio of a typical fast worker, rounded to a percent

A control group that holds a worker to a part of a core stops it once in every tenth of a second.
Times of single ops then say nothing, so blocks are longer than that. The median over the blocks
ignores a short disturbance.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from parallel.calibration.setup import Setup
from parallel.calibration.step_overhead import IsolatedStep
from parallel.results.formatting import percent

BLOCKS = 5
BLOCK_S = 0.3
"""Least seconds of a block, several periods of a control group."""
SPEEDS_SHARE = 0.03
"""Share of the time budget that the blocks last if it is longer."""
FAST = 0.9
"""Workers with at least this speed relative to the fastest are fast; their lower median is typical."""
EVEN = 0.05
"""Speeds that differ from 1 by no more count as 1: measurements differ as much."""
CHANGED = 0.2
"""Relative change of a speed since the earlier calibration that is reported."""


def measure_speeds(setup: Setup, step: IsolatedStep) -> tuple[float, ...]:
    """Return `Cluster.speeds`; empty if all workers are equally fast.

    Workers that share the cores of others do not compute, and get the speed of those.
    """
    world = setup.world
    if world.size == 1:
        return ()
    setup.progress.phase("speeds of the workers")
    duration = max(BLOCK_S, SPEEDS_SHARE * setup.options.budget_s / BLOCKS)
    if setup.computes:
        step.run()  # the first step is slower: it allocates
    own: list[float] = []
    for _ in range(BLOCKS):
        world.barrier()
        begin, count = time.perf_counter(), 0
        while setup.computes and (count == 0 or time.perf_counter() - begin < duration):
            step.run()
            count += 1
        own.append((time.perf_counter() - begin) / count if count else 0.0)
    seconds = world.gather(own)
    computing = [worker for worker, taken in enumerate(seconds) if taken[0] > 0]
    measured = dict(zip(computing, relative_speeds([seconds[w] for w in computing]), strict=True))
    speeds = []
    for host in world.hosts:
        there = [measured[worker] for worker in host.workers if worker in measured]
        speeds += [measured.get(worker, statistics.median_low(there)) for worker in host.workers]
    return () if set(speeds) == {1.0} else tuple(speeds)


def relative_speeds(seconds: Sequence[Sequence[float]]) -> list[float]:
    """Return each worker's speed from its seconds in every block; at least one is 1."""
    fastest = [min(block) for block in zip(*seconds, strict=True)]
    ratios = [
        statistics.median(best / taken for best, taken in zip(fastest, own, strict=True)) for own in seconds
    ]
    typical = statistics.median_low([ratio for ratio in ratios if ratio >= FAST * max(ratios)])
    speeds = [round(ratio / typical, 2) for ratio in ratios]
    return [1.0 if abs(speed - 1) <= EVEN else speed for speed in speeds]


def changed_speeds(known: Sequence[float], now: Sequence[float], workers: int) -> str | None:
    """Return a sentence if workers no longer have the speeds of the earlier calibration."""
    before, after = (tuple(speeds) or (1.0,) * workers for speeds in (known, now))
    if all(abs(b / a - 1) <= CHANGED for a, b in zip(before, after, strict=True)):
        return None
    return (
        f"warning: workers have speeds of {speeds_text(after)}, and had {speeds_text(before)} when they were "
        "calibrated: calibrate.fresh=true measures everything again"
    )


def speeds_text(speeds: Sequence[float]) -> str:
    """Return speeds as percentages."""
    return ", ".join(percent(speed, 0) for speed in speeds)
