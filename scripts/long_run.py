"""Watch a long run: memory, file descriptors, threads and shared memory of every worker.

    python scripts/long_run.py --steps 10000 --workers 2 model=resnet18 model.image_size=32 strategy=data_parallel

Trains under torchrun with a checkpoint every 200 steps, and looks at the workers twice a second.
`--module tests.support.altered_training model=small` takes a network whose steps last milliseconds.
Prints a table of the values at ten moments and the slope over the second half: what grows with the
steps would have one that is not zero.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from parallel.checkpoints.checkpoint import CHECKPOINTS, Checkpoint, whole_checkpoints

SAMPLE_S = 0.5
ENDING = 4
"""Samples at the end that are left out: the workers may be ending."""
IMAGES, BATCH = 400, 8
RUN = (
    f"data.train_images={IMAGES}",
    "data.val_images=32",
    f"trainer.batch_size={BATCH}",
    "trainer.checkpoint.every=200 steps",
    "tracker=none",
    "hydra.run.dir=run",
)
NAMES = ("memory of its own, MB", "shared memory, MB", "file descriptors", "threads")


@dataclass(frozen=True)
class Sample:
    """What one worker holds."""

    own_mb: float
    shared_mb: float
    descriptors: int
    threads: int


def sample(process: psutil.Process) -> Sample:
    """Return what the process holds now."""
    memory = process.memory_info()
    return Sample(
        (memory.rss - memory.shared) / 1e6, memory.shared / 1e6, process.num_fds(), process.num_threads()
    )


def workers_of(launcher: psutil.Process) -> list[psutil.Process]:
    """Return the workers that torchrun has started."""
    return [process for process in launcher.children() if "RANK" in process.environ()]


def newest_step(folder: Path) -> int:
    """Return the step of the newest checkpoint."""
    found = whole_checkpoints(folder / CHECKPOINTS)
    return Checkpoint(found[0]).step if found else 0


def watch(command: list[str], folder: Path) -> list[tuple[int, list[Sample]]]:
    """Run the command; return pairs of a step and what each worker held."""
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    launcher = psutil.Process(process.pid)
    seen = []
    while process.poll() is None:
        time.sleep(SAMPLE_S)
        try:
            workers = workers_of(launcher)
            if workers and (step := newest_step(folder / "run")):
                seen.append((step, [sample(worker) for worker in workers]))
        except (psutil.Error, ValueError):
            continue  # a worker has just ended, or a checkpoint was just removed
    if process.returncode != 0:
        raise SystemExit(f"the run failed with exit code {process.returncode}")
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--module", default="parallel.train", help="module that torchrun runs")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    epochs = -(-arguments.steps // (IMAGES // BATCH))
    torchrun = ["-m", "parallel.torchrun", f"--nproc-per-node={arguments.workers}"]
    command = [sys.executable, *torchrun, "-m", arguments.module, *RUN, f"trainer.epochs={epochs}"]
    with tempfile.TemporaryDirectory(prefix="long_run_") as folder:
        seen = watch([*command, *arguments.overrides], Path(folder))
    # The last sample may be of workers that are ending.
    steps = np.array([step for step, _ in seen[:-1]])
    values = np.array(
        [[astuple(one) for one in workers] for _, workers in seen[:-1]]
    )  # [samples, workers, 4]
    table = Table(title=f"{steps[-1]:,} steps, {arguments.workers} workers: the largest value of the workers")
    for name in ("step", *NAMES):
        table.add_column(name, justify="right")
    for i in np.linspace(0, len(steps) - 1, 10).astype(int):
        table.add_row(f"{steps[i]:,}", *(f"{value:.0f}" for value in values[i].max(axis=0)))
    half = len(steps) // 2
    slopes = [
        np.polyfit(steps[half:], values[half:, :, k].max(axis=1), 1)[0] * 1000 for k in range(len(NAMES))
    ]
    table.add_row("change in 1,000 steps", *(f"{slope:+.2f}" for slope in slopes))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
