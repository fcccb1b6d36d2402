"""Time the baseline against the loop that one writes first, each in processes of its own, in turns.

    python scripts/bench_single.py --image-size 64 --batch-size 128

`eager` is PyTorch as it comes: contiguous tensors, SGD not fused, the C library's allocator, denormal numbers;
`single` is the default configuration of this project on one worker. `bench_strategies.py` has both in one process,
where the allocator and the treatment of denormal numbers, which are a process's, are ours for both. One thread each. A
process makes some untimed steps and then `--steps` timed ones, and tells their median. The ratio is of medians over
the blocks, with a 95 % bootstrap interval.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from parallel.config import ClusterConfig, ModelConfig, StrategyConfig
from parallel.graph import trace
from parallel.lower import lower
from parallel.models import build_model
from parallel.results.statistics import speedup, summarise
from parallel.runtime.runtime import Runtime
from parallel.runtime.world import open_world
from parallel.strategies import build_plan

CLASSES, WARM_UP = 200, 3
LR, MOMENTUM, WEIGHT_DECAY = 1e-5, 0.9, 5e-4
SIDES = ("eager", "single")


def eager(arguments: argparse.Namespace) -> float:
    """Median seconds of a step of the plain loop."""
    torch.set_num_threads(1)
    model = build_model(ModelConfig(image_size=arguments.image_size), CLASSES, seed=0)
    sgd = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    images, labels = batch(arguments)

    def step() -> None:
        sgd.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        sgd.step()

    return median_s(step, arguments.steps)


def single(arguments: argparse.Namespace) -> float:
    """Median seconds of a step of the baseline."""
    model = build_model(ModelConfig(image_size=arguments.image_size), CLASSES, seed=0)
    graph = trace(model, (3, arguments.image_size, arguments.image_size))
    program = lower(graph, build_plan(graph, 1, StrategyConfig("single")), arguments.batch_size)
    with open_world(ClusterConfig(device="cpu")) as world:
        engine = Runtime(program, model, world, seed=0, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        images, labels = batch(arguments)
        images = images.contiguous(memory_format=torch.channels_last)
        return median_s(lambda: engine.train_step(images, labels, step=0, lr=LR), arguments.steps)


def batch(arguments: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """The same random images and labels on both sides."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(arguments.batch_size, 3, arguments.image_size, arguments.image_size, generator=generator)
    return images, torch.randint(CLASSES, (arguments.batch_size,), generator=generator)


def median_s(step: Callable[[], object], steps: int) -> float:
    """Of so many steps, after some that do not count."""
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
    parser.add_argument("--steps", type=int, default=6, help="timed, of a process")
    parser.add_argument("--side", choices=SIDES, help="only this one, in this process: prints seconds")
    arguments = parser.parse_args()
    if arguments.side:
        print({"eager": eager, "single": single}[arguments.side](arguments))
        return
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for block in range(arguments.blocks):
        for side in SIDES if block % 2 else SIDES[::-1]:
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
            seconds[side].append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    print(f"{arguments.image_size} px, batch {arguments.batch_size}, fp32, 1 thread, {arguments.blocks} processes "
          f"each, medians of {arguments.steps} steps")
    for side in SIDES:
        print(f"{side:8} {1000 * summarise(seconds[side]).median:8.1f} ms a step   over eager "
              f"{speedup(seconds['eager'], seconds[side])}")


if __name__ == "__main__":
    main()
