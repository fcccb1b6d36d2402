"""Repetitions of the jobs of a sweep: `repeats=3` makes each run three times.

The first repetition of a job is the job as it would be without, so that `repeats` can be raised later:
finished runs are skipped. The others have folders, numbers and seeds of their own. All jobs run once
before any runs again, so that a slow hour of the machine falls on all of them alike: a repetition of all
jobs is a round, a block of a complete block design. Rounds have different orders, because a machine
that becomes slower during every round would slow down the last job of one order each time.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from parallel.cli.compose import quote
from parallel.cli.sweep import Job
from parallel.config.checks import SEEDS


def repeated(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs with their repetitions, numbered from the number of the first job on."""
    most = max((job.config.repeats for job in jobs), default=1)
    every = [
        _repetition(jobs[i], k)
        for k in range(1, most + 1)
        for i in order_of_round(len(jobs), k)
        if k <= jobs[i].config.repeats
    ]
    first = jobs[0].index if jobs else 0
    return [dataclasses.replace(job, index=index) for index, job in enumerate(every, first)]


def order_of_round(jobs: int, number: int) -> list[int]:
    """Return the order in which round `number`, from 1, runs its jobs.

    The first round has the order 0, 1, …, every even one that of the round before backwards, and every
    other one a random order, always the same. So of any two jobs each is first in half of the rounds,
    which is what `parallel.results.runs` asks of rounds.
    """
    order = list(range(jobs))
    if number > 2:
        random.Random((number - 1) // 2).shuffle(order)
    return order if number % 2 else order[::-1]


def _repetition(job: Job, repeat: int) -> Job:
    """Return repetition number `repeat` of a job, from 1."""
    config = job.config
    if config.repeats == 1:
        return job
    seed = (config.trainer.seed + repeat - 1) % SEEDS
    trainer = dataclasses.replace(config.trainer, seed=seed)
    suffix = "" if repeat == 1 else f",repeat={repeat}"
    run_dir = job.run_dir.with_name(f"{job.run_dir.name}{suffix}")
    own = ["repeats=1", f"repeat={repeat}", f"trainer.seed={seed}", f"hydra.run.dir={quote(str(run_dir))}"]
    return dataclasses.replace(
        job,
        overrides=(*job.overrides, *own),
        config=dataclasses.replace(config, repeats=1, repeat=repeat, trainer=trainer),
        run_dir=run_dir,
    )
