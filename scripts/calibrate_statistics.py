"""Check that the intervals of comparisons hold: on runs of one strategy, and of the same with a delay.

    python scripts/calibrate_statistics.py runs/calibrate_statistics --minutes 10

First measures a pool of short trainings, each in a process of its own, in rounds of three: one as it is,
one with a delay of 5 % planted in every step, and again one as it is. Their order is that of the rounds of
a sweep with `repeats`. A pool that is there already grows. Then forms experiments from the pool:

rounds      complete rounds, as a sweep makes them, by the differences within rounds
the same    the same runs, by the variation between runs, as if the rounds were not known
sets        disjoint sets of runs, whatever their rounds

A/A         both sides as they are: the share of intervals that do not contain 1, at most 1 in 20
planted     one side with the delay: the share of intervals entirely on its side, at least 19 in 20
within run  A/A with one run on each side, by the interval over its epochs: why such intervals are marked

Experiments from one pool share runs: the shares are those of this machine and time, more exact with a
larger pool. The machine must have nothing else to do; runs during which it had are left out, with their
number, and their rounds with them.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
from torch import Tensor

from parallel.cli.compose import compose_config
from parallel.cli.repeats import order_of_round
from parallel.results.disturbance import noise
from parallel.results.record_files import RECORD, find_records, unfinished_runs
from parallel.results.records import Record
from parallel.results.run_lock import locked
from parallel.results.runs import epoch_times
from parallel.results.statistics import Speedup, speedup, speedup_of_rounds, speedup_of_runs
from parallel.runtime.communication.world import World
from parallel.runtime.execution.engine import Engine
from parallel.runtime.instrumentation.observe import Observer
from parallel.training import trainer
from parallel.training.engines import open_engine
from parallel.training.job import Job

DELAY = 0.05
"""Planted delay as a fraction of a step."""
PLAIN, PLANTED, AGAIN = KINDS = ("plain", "planted", "again")
"""Runs of a round."""
OPTIONS = (
    *("strategy=single", "model=alexnet", "model.image_size=64", "data=synthetic", "tracker=none"),
    *("data.train_images=32", "data.val_images=16", "trainer.batch_size=16", "trainer.epochs=10"),
    *("trainer.checkpoint.every=never", "trainer.checkpoint.final=false"),
)
"""Ten epochs of two steps: the shortest runs that also have an interval of their own."""
EXPERIMENTS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("pool", type=Path, help="folder of the runs")
    parser.add_argument("--minutes", type=float, default=0.0, help="time for further runs")
    parser.add_argument("--repeats", type=int, nargs="+", default=[3, 5, 8])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--round", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        train_one(arguments.pool, arguments.one, arguments.round, arguments.seed)
        return
    grow(arguments.pool, 60 * arguments.minutes)
    study(arguments.pool, arguments.repeats, np.random.default_rng(arguments.seed))


def grow(pool: Path, seconds: float) -> None:
    """Measure rounds until the time is over; the last one is completed."""
    end = time.monotonic() + seconds
    number = sum(1 for _ in pool.glob(f"*/{RECORD}"))
    while time.monotonic() < end or number % len(KINDS):
        done, place = divmod(number, len(KINDS))
        kind = KINDS[order_of_round(len(KINDS), done + 1)[place]]
        run_dir = pool / f"{number:04d}_{kind}"
        subprocess.run(
            [
                sys.executable,
                __file__,
                str(run_dir),
                f"--one={kind}",
                f"--round={done + 1}",
                f"--seed={number}",
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        number += 1


def train_one(run_dir: Path, kind: str, number: int, seed: int) -> None:
    """Train one run of round `number` in this process."""

    def delayed(job: Job, world: World, observer: Observer | None = None) -> Engine:
        engine = open_engine(job, world, observer)
        own = engine.train_step

        def slower(images: Tensor, labels: Tensor, *, step: int, lr: float) -> Tensor:
            begin = time.perf_counter()
            loss = own(images, labels, step=step, lr=lr)
            end = time.perf_counter() + DELAY * (time.perf_counter() - begin)
            while time.perf_counter() < end:  # a sleep would let the core rest
                pass
            return loss

        engine.train_step = slower  # type: ignore[method-assign]
        return engine

    own = [f"trainer.seed={seed}", f"sweep={kind}", f"repeat={number}", "workers=1"]
    config = compose_config([*OPTIONS, *own])
    engines = patch.object(trainer, "open_engine", delayed if kind == PLANTED else open_engine)
    with engines, locked(run_dir):
        trainer.train(config, run_dir)


def study(folder: Path, repeats: Sequence[int], rng: np.random.Generator) -> None:
    """Print the shares of all experiments."""
    records, errors = find_records([folder])
    quiet = [record for record in records if not noise(record)]
    pool = Pool.of(quiet)
    print(
        f"{len(records)} runs, {len(records) - len(quiet)} left out as noisy, "
        f"{len(errors) + len(unfinished_runs([folder]))} unreadable or unfinished; "
        f"{len(pool.rounds)} complete rounds"
    )
    describe({PLAIN: pool.plain, PLANTED: pool.planted}, quiet)
    for count in repeats:
        if pool.has_rounds(count):
            drawn = [pool.draw_rounds(count, rng) for _ in range(EXPERIMENTS)]
            report(f"repeats={count}, rounds:  ", drawn, speedup_of_rounds)
            report(f"repeats={count}, the same:", drawn, speedup_of_runs)
        else:
            print(f"repeats={count}, rounds:   the pool is too small")
        if 2 * count <= len(pool.plain) and count <= len(pool.planted):
            report(
                f"repeats={count}, sets:    ",
                [pool.draw_sets(count, rng) for _ in range(EXPERIMENTS)],
                speedup_of_runs,
            )
        else:
            print(f"repeats={count}, sets:     the pool is too small")
    pairs = [two_sets(pool.plain, 1, rng) for _ in range(EXPERIMENTS)] if len(pool.plain) > 1 else []
    if pairs:
        print(f"within run: A/A differs in {share(differs(speedup(a[0], b[0])) for a, b in pairs)}")


Runs = list[tuple[float, ...]]
"""Epoch times of some runs."""


@dataclass(frozen=True)
class Experiment:
    """Two sets of plain runs and one with the delay, as many in each."""

    plain: Runs
    again: Runs
    planted: Runs


@dataclass(frozen=True)
class Pool:
    """Epoch times of runs, by round and kind."""

    plain: Runs
    """Both plain runs of every round, complete or not."""
    planted: Runs
    rounds: dict[int, dict[str, tuple[float, ...]]]
    """The complete rounds, by number."""

    @classmethod
    def of(cls, records: Sequence[Record]) -> Pool:
        """Return the pool of some records."""
        rounds: dict[int, dict[str, tuple[float, ...]]] = defaultdict(dict)
        for record in records:
            rounds[record.config["repeat"]][str(record.sweep)] = epoch_times([record])
        runs = {kind: [r[kind] for r in rounds.values() if kind in r] for kind in KINDS}
        complete = {number: found for number, found in rounds.items() if len(found) == len(KINDS)}
        return cls(runs[PLAIN] + runs[AGAIN], runs[PLANTED], complete)

    @property
    def mirrored(self) -> list[int]:
        """Numbers of the complete rounds before one that is complete, too, and has their order
        backwards."""
        return [number for number in self.rounds if number % 2 and number + 1 in self.rounds]

    def has_rounds(self, count: int) -> bool:
        """Return whether there are enough rounds for an experiment, which has at least two."""
        return count >= 2 and len(self.rounds) >= count and len(self.mirrored) >= count // 2

    def draw_rounds(self, count: int, rng: np.random.Generator) -> Experiment:
        """Return the runs of `count` rounds, in which each side is first in half of them, as in a sweep."""
        pairs = rng.choice(self.mirrored, count // 2, replace=False).tolist()
        numbers = [[number, number + 1] for number in pairs]
        if count % 2:
            others = [number for number in self.rounds if not any(number in pair for pair in numbers)]
            numbers.append([int(rng.choice(others))])
        experiment = Experiment([], [], [])
        for chosen in numbers:
            one, other = rng.permuted([PLAIN, AGAIN])
            for found in map(self.rounds.__getitem__, chosen):
                experiment.plain.append(found[one])
                experiment.again.append(found[other])
                experiment.planted.append(found[PLANTED])
        return experiment

    def draw_sets(self, count: int, rng: np.random.Generator) -> Experiment:
        """Return disjoint sets of `count` runs, whatever their rounds."""
        return Experiment(*two_sets(self.plain, count, rng), drawn(self.planted, count, rng))


def report(name: str, experiments: Sequence[Experiment], analyse: Callable[[Runs, Runs], Speedup]) -> None:
    """Print the shares of some experiments by one way to compute intervals."""
    alike = [analyse(experiment.plain, experiment.again) for experiment in experiments]
    slower = [analyse(experiment.plain, experiment.planted) for experiment in experiments]
    widths = [math.log(s.high / s.low) / 2 for s in alike if s.low is not None and s.high is not None]
    print(
        f"{name} A/A differs in {share(map(differs, alike))}, "
        f"planted found in {share(map(is_slower, slower))}, "
        f"median half-width ± {100 * float(np.median(widths)):.1f} %"
    )


def describe(pools: dict[str, list[tuple[float, ...]]], records: Sequence[Record]) -> None:
    """Print how runs and epochs vary."""
    for kind, runs in pools.items():
        if len(runs) > 1:
            medians = np.log([np.median(run) for run in runs])
            within = np.mean([np.std(np.log(run), ddof=1) for run in runs])
            print(
                f"{kind}: {len(runs)} runs, median epoch {np.exp(np.median(medians)):.4f} s, variation "
                f"between runs {100 * np.std(medians, ddof=1):.2f} %, within {100 * within:.2f} %"
            )
    loads = [r.load.processes for r in records if r.load is not None and r.load.processes is not None]
    if loads:
        print(f"other processes: median {np.median(loads):.2f}, at most {max(loads):.2f}")


def drawn(pool: Runs, count: int, rng: np.random.Generator) -> Runs:
    """Return `count` runs of the pool."""
    return [pool[i] for i in rng.choice(len(pool), count, replace=False)]


def two_sets(pool: Runs, count: int, rng: np.random.Generator) -> tuple[Runs, Runs]:
    """Return two disjoint sets of `count` runs each."""
    both = drawn(pool, 2 * count, rng)
    return both[:count], both[count:]


def differs(found: Speedup) -> bool:
    """Return whether an interval tells a difference."""
    return found.low is not None and found.high is not None and not found.low <= 1 <= found.high


def is_slower(found: Speedup) -> bool:
    """Return whether an interval tells that the second side is slower."""
    return found.high is not None and found.high < 1


def share(found: Iterable[bool]) -> str:
    """Return the share of true values in percent."""
    values = list(found)
    return f"{100 * sum(values) / len(values):.1f} %"


if __name__ == "__main__":
    main()
