"""Measure what checkpoints cost: runs with one per epoch and without, in turns.

    python scripts/bench_checkpoints.py --workers 2 strategy=data_parallel

Trains the default workload (AlexNet on digits) under torchrun. Prints how long training waits for
the copies, as a share of the epoch, and the ratio of the epochs' times, with and without: the
second also counts the processor time of the threads that write files and checksums. First epochs
are left out: nothing is written beside them.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from parallel.results.record_files import read_record
from parallel.results.records import Epoch
from parallel.results.statistics import speedup

SIDES = ("never", "1 epoch")


def run(every: str, workers: int, epochs: int, overrides: list[str], folder: Path) -> tuple[Epoch, ...]:
    """Return the epochs of a run, without the first."""
    torchrun = ["-m", "parallel.torchrun", f"--nproc-per-node={workers}"]
    options = [
        f"trainer.checkpoint.every={every}",
        "trainer.checkpoint.final=false",
        f"trainer.epochs={epochs}",
    ]
    command = [sys.executable, *torchrun, "-m", "parallel.train", f"hydra.run.dir={folder}", "tracker=none"]
    subprocess.run([*command, *options, *overrides], check=True, stdout=subprocess.DEVNULL)
    return read_record(folder).epochs[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--blocks", type=int, default=3, help="runs of each side")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of a run, the first of them untimed")
    parser.add_argument("overrides", nargs="*", default=["strategy=single"])
    arguments = parser.parse_args()
    found: dict[str, list[Epoch]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory(prefix="bench_checkpoints_") as folder:
        for block in range(arguments.blocks):
            for side in SIDES:
                place = Path(folder) / f"{block} {side}"
                found[side] += run(side, arguments.workers, arguments.epochs, arguments.overrides, place)
    without, beside = ([epoch.seconds for epoch in found[side]] for side in SIDES)
    waits = [epoch.checkpoint_s or 0.0 for epoch in found["1 epoch"]]
    shares = [wait / epoch.seconds for wait, epoch in zip(waits, found["1 epoch"], strict=True)]
    print(f"epochs without checkpoints   median {statistics.median(without):.2f} s of {len(without)}")
    print(f"epochs with one each         median {statistics.median(beside):.2f} s of {len(beside)}")
    print(f"ratio                        {speedup(beside, without)}")
    print(
        f"training waits for a copy    median {1000 * statistics.median(waits):.1f} ms, "
        f"{100 * statistics.median(shares):.2f} % of the epoch; largest {1000 * max(waits):.1f} ms"
    )


if __name__ == "__main__":
    main()
