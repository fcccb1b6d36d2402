"""Compare all strategies on this machine: calibrate, train with each, print the table, write the report.

    python -m parallel.benchmark [workers=N] [device=cpu|cuda] [sweep=NAME] [--dry-run] [override …]

    python -m parallel.benchmark                 all cores, up to eight workers; or all GPUs
    python -m parallel.benchmark workers=2 model=resnet18 trainer.epochs=2

Prints each command before it runs it. On CPUs AlexNet learns the embedded digits, on GPUs it trains
on random images. Running it again skips finished runs, and the calibration if there is one.

    workers=N    number of workers, at least 2 (default: the GPUs, or the cores, at most 8)
    device=cuda  one GPU for each worker (default if there are two); cpu: the cores, divided evenly
    sweep=NAME   folder of the runs in runs/ (default: compare)
    --dry-run    only print the commands

Other overrides are those of parallel.train. Exit code 1 if a run failed, 2 for invalid input.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from rich.console import Console

from parallel.cli import process_tree
from parallel.cli.benchmark_plan import (
    CALIBRATION_S,
    Setup,
    calibration,
    choose,
    impossible,
    shared_overrides,
    trainings,
)
from parallel.cli.command import Command, Given
from parallel.cli.compose import compose_config
from parallel.cli.tables import print_lines
from parallel.cli.values import whole_number
from parallel.cluster import open_cluster
from parallel.config.checks import MOST_WORKERS
from parallel.graph.configured import graph_of
from parallel.prediction.plans import plan_of
from parallel.prediction.predict import predict_step
from parallel.results.formatting import count
from parallel.runtime.communication.device import this_machine

COMMAND = Command(__doc__, flags=("--dry-run",), keys=("workers", "device", "sweep"))
GRACE_S = 30.0
"""Seconds that an interrupted command has to end its own processes; a sweep gives its job 15."""


def benchmark(given: Given, console: Console) -> int:
    """Run the commands and return the exit code."""
    stated = given.keys.get("workers")
    machine = this_machine()
    setup = choose(
        machine,
        None if stated is None else whole_number("workers", stated, MOST_WORKERS),
        given.keys.get("device"),
    )
    sweep, own = given.keys.get("sweep", "compare"), given.rest
    reasons = impossible(setup, own)
    threads = f" with {count(setup.threads, 'thread')} each" if setup.device == "cpu" else ""
    print_lines(
        console,
        f"{setup.workers} workers on {setup.device}{threads}, of {machine.cores} cores and {machine.gpus} GPUs",
        *setup.notes,
        *(f"left out: {name}: {reason}" for name, reason in reasons.items()),
    )
    dry = "--dry-run" in given.flags
    if not calibrated(setup, own):
        print_lines(console, f"calibrating takes some {CALIBRATION_S} s; predictions and `searched` need it")
        if code := run(calibration(setup, own), console, dry):
            return code
    codes = [run(command, console, dry) for command in trainings(setup, reasons, sweep, own)]
    folder = Path("runs") / sweep
    codes.append(run([sys.executable, "-m", "parallel.compare", str(folder)], console, dry))
    if not dry:
        print_lines(console, f"records: {folder}/*/record.json and epochs.csv")
    return next((code for code in codes if code != 0), 0)


def calibrated(setup: Setup, own: tuple[str, ...]) -> bool:
    """Return whether this machine has a calibration for the workers that measured this model."""
    shared = [*shared_overrides(setup, own), f"workers={setup.workers}", "strategy=data_parallel"]
    config = compose_config(shared)
    graph = graph_of(config)
    try:
        treated = config.trainer.channels_last
        cluster = open_cluster(config.cluster, setup.workers, channels_last=treated)
        _, doubt = predict_step(config, graph, plan_of(config, graph), cluster, cluster.hosts)
    except ValueError:
        return False
    return not doubt


def run(command: list[str], console: Console, dry: bool) -> int:
    """Print a command, run it and return its exit code; only print it if `dry`."""
    print_lines(console, "", f"$ python {shlex.join(command[1:])}")
    console.file.flush()
    return 0 if dry else process_tree.run(command, os.environ, GRACE_S)


if __name__ == "__main__":
    sys.exit(COMMAND.run(benchmark, sys.argv[1:]))
