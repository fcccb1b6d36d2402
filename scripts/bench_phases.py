"""Measure what recording the phases of steps costs: one engine, with and without, in turns.

    python -m parallel.torchrun --nproc-per-node 2 scripts/bench_phases.py

The recorder is exchanged between blocks of steps of the same engine, in random order. Prints the ratio
of the median step times with a 95 % bootstrap interval over the blocks. The shorter the step, the
more it costs: the default is AlexNet at 64 px with 16 images.
"""

from __future__ import annotations

import argparse
import random
import time

import torch

from parallel.config import ClusterConfig
from parallel.graph import trace
from parallel.models import build_model
from parallel.models.alexnet import AlexNetConfig
from parallel.program.lowering import lower
from parallel.results.statistics import speedup, summarise
from parallel.runtime.communication.opening import open_world
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime
from parallel.runtime.instrumentation.clock import Clock
from parallel.strategies import DataParallel, OneWeirdTrick, build_plan

CLASSES = 10
LR = 1e-5
STRATEGIES = {"data_parallel": DataParallel(), "one_weird_trick": OneWeirdTrick()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--strategy", default="one_weird_trick", choices=STRATEGIES)
    parser.add_argument("--batch-size", type=int, default=16, help="global")
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--steps", type=int, default=5, help="per block")
    arguments = parser.parse_args()
    with open_world(ClusterConfig()) as world:
        model = build_model(AlexNetConfig(image_size=64), CLASSES, seed=0)
        graph = trace(model, (3, 64, 64))
        plan = build_plan(graph, world.size, STRATEGIES[arguments.strategy])
        options = EngineOptions(seed=0, momentum=0.9)
        engine = Runtime(
            lower(graph, plan, arguments.batch_size, world.host_of, collectives=world.collectives),
            model,
            world,
            options,
        )
        images = torch.randn(len(engine.image_positions), 3, 64, 64).to(world.device)
        labels = torch.randint(CLASSES, (len(engine.label_positions),)).to(world.device)
        seconds: dict[bool, list[float]] = {True: [], False: []}
        order = random.Random(0)  # same order on every worker
        step = 0
        for block in range(arguments.blocks + 1):
            for on in order.sample((True, False), 2):
                recorder = Clock(world.device, phases=on)
                engine.clock.phases, engine.clock._records_phases = recorder.phases, on
                world.barrier()
                engine.clock.reset()
                begin = time.perf_counter()
                for _ in range(arguments.steps):
                    engine.train_step(images, labels, step=step, lr=LR)
                    engine.clock.phases.end_step()
                    step += 1
                engine.complete()
                world.barrier()
                if block:
                    seconds[on].append((time.perf_counter() - begin) / arguments.steps)
        engine.close()
        if world.rank == 0:
            medians = {on: 1000 * summarise(times).median for on, times in seconds.items()}
            print(f"{arguments.strategy}, {world.size} workers, batch {arguments.batch_size}")
            print(f"without {medians[False]:.2f} ms a step, with {medians[True]:.2f} ms")
            print(f"ratio of the times, with ÷ without: {speedup(seconds[True], seconds[False])}")


if __name__ == "__main__":
    main()
