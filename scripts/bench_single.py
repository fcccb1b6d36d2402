"""Time the baseline and a plain PyTorch loop, each in its own processes, in turns.

    python scripts/bench_single.py --image-size 64 --batch-size 128

`eager` is PyTorch with its defaults: contiguous tensors, SGD that is not fused, the C library's
allocator, denormal numbers. `single` is this project's default configuration on one worker.
`bench_strategies.py` runs both in one process, where both share our allocator settings and flushed
denormals, which are per process. One thread each. A process runs some untimed steps, then `--steps`
timed ones, and prints their median. The ratio is of medians over the blocks, with a 95 % bootstrap
interval.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from bench_strategies import make_steps

from parallel.config import ClusterConfig
from parallel.results.statistics import speedup, summarise
from parallel.runtime.communication.opening import open_world
from parallel.runtime.communication.world import World

WARM_UP = 3
SIDES = ("eager", "single")


def measure(arguments: argparse.Namespace) -> float:
    """Return the median seconds of a step of one side, measured in this process."""
    if arguments.side == "single":
        with open_world(ClusterConfig(device="cpu")) as world:
            return median_s(make_steps("single", arguments, world)[0], arguments.steps)
    torch.set_num_threads(1)
    return median_s(
        make_steps("eager", arguments, World(0, 1, torch.device("cpu"), "none"))[0], arguments.steps
    )


def median_s(step: Callable[[], object], steps: int) -> float:
    """Return the median seconds of `steps` steps after the warm-up."""
    seconds = []
    for i in range(WARM_UP + steps):
        begin = time.perf_counter()
        step()
        if i >= WARM_UP:
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6, help="timed steps per process")
    parser.add_argument(
        "--side", choices=SIDES, help="measure only this side, in this process, and print seconds"
    )
    arguments = parser.parse_args(namespace=argparse.Namespace(precision="fp32"))
    if arguments.side:
        print(measure(arguments))
        return
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for block in range(arguments.blocks):
        for side in SIDES if block % 2 else SIDES[::-1]:
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
            seconds[side].append(
                float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            )
    print(
        f"{arguments.image_size} px, batch {arguments.batch_size}, fp32, 1 thread, {arguments.blocks} processes "
        f"each, medians of {arguments.steps} steps"
    )
    for side in SIDES:
        print(
            f"{side:8} {1000 * summarise(seconds[side]).median:8.1f} ms a step   over eager "
            f"{speedup(seconds['eager'], seconds[side])}"
        )


if __name__ == "__main__":
    main()
