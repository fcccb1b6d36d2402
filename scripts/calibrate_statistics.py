"""Check that the intervals of comparisons hold: on runs of one strategy, and of the same with a delay.

    python scripts/calibrate_statistics.py runs/calibrate_statistics --minutes 12

First measures a pool of short trainings, each in a process of its own, in turns: one as it is, one with
a delay of 5 % planted in every step. A pool that is there already grows. Then forms experiments as a
sweep with `repeats` would: disjoint sets of runs, drawn from the pool.

A/A         both sides as they are: the share of intervals that do not contain 1, at most 1 in 20
planted     one side with the delay: the share of intervals entirely on its side, at least 19 in 20
within run  A/A with one run on each side, by the interval over its epochs: why such intervals are marked

Experiments from one pool share runs: the shares are those of this machine and time, more exact with a
larger pool. The machine must have nothing else to do; runs during which it had are left out, with their
number.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
from torch import Tensor

from parallel.cli.compose import compose_config
from parallel.results.disturbance import noise
from parallel.results.record_files import RECORD, find_records, unfinished_runs
from parallel.results.records import Record
from parallel.results.result import epoch_times
from parallel.results.statistics import Speedup, speedup, speedup_of_runs
from parallel.runtime.communication.world import World
from parallel.runtime.execution.engine import Engine
from parallel.runtime.instrumentation.observe import Observer
from parallel.training import trainer
from parallel.training.engines import open_engine
from parallel.training.job import Job

DELAY = 0.05
"""Planted delay as a fraction of a step."""
PLAIN, PLANTED = "plain", "planted"
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
    parser.add_argument("--one", choices=(PLAIN, PLANTED), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        train_one(arguments.pool, arguments.one, arguments.seed)
        return
    grow(arguments.pool, 60 * arguments.minutes)
    study(arguments.pool, arguments.repeats, np.random.default_rng(arguments.seed))


def grow(pool: Path, seconds: float) -> None:
    """Measure runs in turns until the time is over."""
    end = time.monotonic() + seconds
    number = sum(1 for _ in pool.glob(f"*/{RECORD}"))
    while time.monotonic() < end:
        kind = (PLAIN, PLANTED)[number % 2]
        subprocess.run(
            [sys.executable, __file__, str(pool / f"{number:04d}_{kind}"), "--one", kind, f"--seed={number}"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        number += 1


def train_one(run_dir: Path, kind: str, seed: int) -> None:
    """Train one run of the pool in this process."""

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

    config = compose_config([*OPTIONS, f"trainer.seed={seed}", f"sweep={kind}", "workers=1"])
    with patch.object(trainer, "open_engine", delayed if kind == PLANTED else open_engine):
        trainer.train(config, run_dir)


def study(folder: Path, repeats: Sequence[int], rng: np.random.Generator) -> None:
    """Print the shares of all experiments."""
    records, errors = find_records([folder])
    quiet = [record for record in records if not noise(record)]
    pools = {kind: [epoch_times([r]) for r in quiet if r.sweep == kind] for kind in (PLAIN, PLANTED)}
    print(
        f"{len(records)} runs, {len(records) - len(quiet)} left out as noisy, "
        f"{len(errors) + len(unfinished_runs([folder]))} unreadable or unfinished"
    )
    describe(pools, quiet)
    for count in repeats:
        if 2 * count > len(pools[PLAIN]) or count > len(pools[PLANTED]):
            print(f"repeats={count}: the pool is too small")
            continue
        alike = [speedup_of_runs(*two_sets(pools[PLAIN], count, rng)) for _ in range(EXPERIMENTS)]
        slower = [
            speedup_of_runs(drawn(pools[PLAIN], count, rng), drawn(pools[PLANTED], count, rng))
            for _ in range(EXPERIMENTS)
        ]
        widths = [math.log(s.high / s.low) / 2 for s in alike if s.low is not None and s.high is not None]
        print(
            f"repeats={count}: A/A differs in {share(map(differs, alike))}, "
            f"planted found in {share(map(is_slower, slower))}, "
            f"median half-width ± {100 * float(np.median(widths)):.1f} %"
        )
    pairs = [two_sets(pools[PLAIN], 1, rng) for _ in range(EXPERIMENTS)] if len(pools[PLAIN]) > 1 else []
    if pairs:
        print(f"within run: A/A differs in {share(differs(speedup(a[0], b[0])) for a, b in pairs)}")


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


Runs = list[tuple[float, ...]]


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
