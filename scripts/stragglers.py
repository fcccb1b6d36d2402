"""Plant delays in single workers, and see whether the records name worker and cause.

    python scripts/stragglers.py --share 0.25

Trains a small network with each of the setups: undisturbed, several times; then with a delay of
`--share` of a step in the loading, the forward, the backward or the messages of one worker, in every
`--every`th step (and then that many times as long). Messages of the worker are late by half of the
delay each, because a step of data parallelism waits for two of them one after the other. Prints what
the records say. Setups with more workers than cores show what contention does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from parallel.results.record_files import read_record
from parallel.results.records import Record

ROOT = Path(__file__).resolve().parents[1]
CAUSES = ("loading", "forward", "backward", "messages")
WORKLOAD = (
    "model=small",
    "data=synthetic",
    "data.val_images=48",
    "trainer.batch_size=240",
    "trainer.checkpoint.every=never",
    "trainer.checkpoint.final=false",
    "tracker=none",
)
TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Setup:
    """A plan on some workers."""

    workers: int
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.workers} workers: {' '.join(self.overrides)}"


SETUPS = (
    Setup(2, ("strategy=data_parallel",)),
    Setup(2, ("strategy=one_weird_trick",)),
    Setup(3, ("strategy=data_parallel", "cluster.shared_memory=false")),
    Setup(4, ("strategy=data_parallel",)),
    Setup(4, ("strategy=one_weird_trick", "cluster.shared_memory=false")),
)


@dataclass(frozen=True)
class Case:
    """A run, and what is planted in it (`tests/support/planted_delays.py`)."""

    directory: str
    overrides: tuple[str, ...]
    cause: str | None = None
    worker: int = 0
    delay_s: float = 0.0
    every: int = 1

    @property
    def record(self) -> Record:
        return read_record(Path(self.directory))

    @property
    def step_s(self) -> float:
        """Median time of a step, over the epochs."""
        workload = self.record.workload
        steps = (workload.train_images or 0) // (workload.batch_size or 1)
        return statistics.median(epoch.seconds for epoch in self.record.epochs) / steps


def train(workers: int, cases: list[Case], folder: Path) -> None:
    """Run the cases, all for this number of workers, under one torchrun."""
    if not cases:
        return
    file = folder / f"cases-{workers}-{len(list(folder.iterdir()))}.json"
    file.write_text(json.dumps([dataclasses.asdict(case) for case in cases]))
    torchrun = [sys.executable, "-m", "parallel.torchrun", f"--nproc-per-node={workers}"]
    subprocess.run(
        [*torchrun, "-m", "tests.support.planted_delays", str(file)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        timeout=TIMEOUT_S,
        check=True,
    )


def run_all(cases: list[tuple[Setup, Case]], folder: Path) -> None:
    """Run all cases, those for the same number of workers in the same processes."""
    for workers in sorted({setup.workers for setup, _ in cases}):
        train(workers, [case for setup, case in cases if setup.workers == workers], folder)


def verdict(case: Case) -> tuple[bool, str]:
    """Return whether a record names what was planted and nothing else, and what it names."""
    found = case.record.stragglers or ()
    named = [(straggler.worker, straggler.cause) for straggler in found]
    expected = [] if case.cause is None else [(case.worker, case.cause)]
    said = "; ".join(
        f"worker {s.worker} {s.cause} {1000 * s.lost_s:.2f} ms {100 * s.share:.0f} %" for s in found
    )
    return named == expected, said or "nobody"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--share", type=float, default=0.25, help="delay as a fraction of a step")
    parser.add_argument("--every", type=int, default=1, help="steps from one delay to the next")
    parser.add_argument("--undisturbed", type=int, default=4, help="undisturbed runs of each setup")
    parser.add_argument("--steps", type=int, default=30, help="steps of an epoch")
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    begin = time.monotonic()
    length = (f"trainer.epochs={arguments.epochs}", f"data.train_images={240 * arguments.steps}")
    with tempfile.TemporaryDirectory(prefix="stragglers_") as name:
        folder = Path(name)

        def case(setup: Setup, label: str) -> Case:
            overrides = (*WORKLOAD, *length, f"workers={setup.workers}", *setup.overrides)
            return Case(str(folder / f"{SETUPS.index(setup)} {label}"), overrides)

        undisturbed = [
            (setup, case(setup, str(i))) for setup in SETUPS for i in range(max(1, arguments.undisturbed))
        ]
        run_all(undisturbed, folder)
        disturbed = []
        for number, setup in enumerate(SETUPS):
            step_s = statistics.median(own.step_s for of, own in undisturbed if of == setup)
            for i, cause in enumerate(CAUSES):
                planted_s = arguments.share * step_s * arguments.every / (2 if cause == "messages" else 1)
                planted = dataclasses.replace(
                    case(setup, cause),
                    cause=cause,
                    worker=(number + i) % setup.workers,
                    delay_s=planted_s,
                    every=arguments.every,
                )
                disturbed.append((setup, planted))
        run_all(disturbed, folder)
        show(undisturbed, disturbed)
    print(f"{time.monotonic() - begin:.0f} s, {os.cpu_count()} cores")


def show(undisturbed: list[tuple[Setup, Case]], disturbed: list[tuple[Setup, Case]]) -> None:
    """Print a row for each run with a delay, a row for the others of each setup, and the counts."""
    table = Table("setup", "planted", "step, ms", "named", "")
    for setup in SETUPS:
        calm = [case for of, case in undisturbed if of == setup]
        step_s = statistics.median(case.step_s for case in calm)
        wrong = [said for ok, said in map(verdict, calm) if not ok]
        table.add_row(
            setup.name, f"nothing, {len(calm)} runs", f"{1000 * step_s:.1f}", "; ".join(wrong) or "nobody"
        )
        for case in [case for of, case in disturbed if of == setup]:
            ok, said = verdict(case)
            planted = f"worker {case.worker} {case.cause} {1000 * case.delay_s:.2f} ms"
            table.add_row("", planted, f"{1000 * case.step_s:.1f}", said, "" if ok else "wrong")
    Console(width=150).print(table)
    right = sum(verdict(case)[0] for _, case in disturbed)
    false = sum(not verdict(case)[0] for _, case in undisturbed)
    print(
        f"named rightly: {right} of {len(disturbed)}; named in undisturbed runs: {false} of {len(undisturbed)}"
    )


if __name__ == "__main__":
    main()
