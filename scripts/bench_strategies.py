"""Time steps of the strategies against plain PyTorch and DDP, interleaved in one run.

    python -m parallel.torchrun --nproc-per-node 2 scripts/bench_strategies.py --image-size 64 --batch-size 128

All engines run in the same processes and take turns in blocks of random order, so that changes of
the machine's load affect them alike. `plain` is a minimal hand-written loop (channels_last, fused
SGD), `eager` the same with PyTorch's defaults, and `single` our baseline; these run on worker
0 while the others wait. Every worker has one thread. Peers other than DDP (docs/peers.md) run if
`--only` names them. Warm-up blocks are not counted. Ratios are of median step times, with a 95 %
bootstrap interval over the blocks.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.config import ClusterConfig, Ddp
from parallel.data.random_batch import random_batch
from parallel.graph import trace
from parallel.models import build_model
from parallel.models.alexnet import AlexNetConfig
from parallel.program.lowering import lower
from parallel.results.statistics import speedup, summarise
from parallel.runtime.communication.opening import open_world
from parallel.runtime.communication.world import World
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime
from parallel.runtime.peers import PEERS
from parallel.runtime.peers.engine import PeerEngine
from parallel.strategies import DataParallel, ModelParallel, OneWeirdTrick, Single, build_plan

Step = Callable[[], None]

CLASSES = 200
LR, MOMENTUM, WEIGHT_DECAY = 1e-5, 0.9, 5e-4
"""The learning rate is too small to memorise the one batch: denormal gradients would slow the step
several times."""
SGD: dict[str, Any] = {"lr": LR, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}
GRAPHS = "single graphs"
"""The baseline with its step captured as a CUDA graph; only on a GPU, and only if `--only` names it."""
STRATEGIES = {
    "single": Single(),
    GRAPHS: Single(),
    "data_parallel": DataParallel(),
    "one_weird_trick a": OneWeirdTrick(scheme="a"),
    "one_weird_trick b": OneWeirdTrick(scheme="b"),
    "one_weird_trick c": OneWeirdTrick(scheme="c"),
    "model_parallel layers": ModelParallel(scheme="layers"),
    "model_parallel 4": ModelParallel(scheme="layers", micro_batches=4),
    "model_parallel tensor": ModelParallel(scheme="tensor"),
}

ALONE = ("plain", "eager", "single", GRAPHS)
"""Engines that run on worker 0 while the others wait."""


def plain(model: nn.Module, images: Tensor, labels: Tensor, precision: str, *, tuned: bool = True) -> Step:
    """Return a step of the hand-written loop: channels_last and fused SGD or, if not `tuned`,
    PyTorch's defaults."""
    layout = torch.channels_last if tuned else torch.contiguous_format
    model = model.to(images.device).to(memory_format=layout)  # type: ignore[call-overload]
    images = images.contiguous(memory_format=layout)
    sgd = torch.optim.SGD(model.parameters(), **SGD, fused=tuned)

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(model(images), labels)
        sgd.zero_grad()
        loss.backward()
        sgd.step()

    return step


def nothing() -> None:
    """Do nothing."""


def make_steps(name: str, arguments: argparse.Namespace, world: World) -> tuple[Step, Step]:
    """Return a step of the named engine, and what ends a block of steps.

    Both do nothing on workers where the engine does not run.
    """
    model = build_model(AlexNetConfig(image_size=arguments.image_size), CLASSES, seed=0)
    shape = (3, arguments.image_size, arguments.image_size)
    images, labels = random_batch(arguments.batch_size, shape, CLASSES, seed=0)
    images, labels = (
        images.contiguous(memory_format=torch.channels_last).to(world.device),
        labels.to(world.device),
    )
    alone = name in ALONE
    if alone and world.rank > 0:
        return nothing, nothing
    if name in ("plain", "eager"):
        return plain(model, images, labels, arguments.precision, tuned=name == "plain"), nothing
    own = World(0, 1, world.device, "none") if alone else world
    options = EngineOptions(
        0, arguments.precision, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, graphs=name == GRAPHS
    )
    engine: PeerEngine | Runtime
    if name in PEERS:
        peer = PEERS[name]
        config = Ddp(bucket_mb=arguments.bucket_mb) if name == "ddp" else peer.options
        engine = PeerEngine(peer, config, model, own, options, batch_size=arguments.batch_size)
    else:
        graph = trace(model, shape)
        plan = build_plan(graph, own.size, STRATEGIES[name])
        program = lower(graph, plan, arguments.batch_size, own.host_of, collectives=own.collectives)
        engine = Runtime(program, model, own, options)
    images, labels = images[engine.image_positions], labels[engine.label_positions]

    count = itertools.count()

    def step() -> None:
        engine.train_step(images, labels, step=next(count), lr=LR)
        engine.clock.reset()  # its marks are not used

    return step, engine.complete  # otherwise the last gathers delay the next engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=128, help="global")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "tf32", "bf16"])
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--steps", type=int, default=2, help="per block and engine")
    parser.add_argument("--bucket-mb", type=float, help="of DDP; without it, those of torch")
    parser.add_argument(
        "--only",
        default=",".join(["plain", *(name for name in STRATEGIES if name != GRAPHS), "ddp"]),
        help=f"comma-separated names; also eager, {GRAPHS}, {', '.join(name for name in PEERS if name != 'ddp')}",
    )
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    known = ["plain", "eager", *STRATEGIES, *PEERS]
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--only={','.join(unknown)} must be some of {', '.join(known)}")
    with open_world(ClusterConfig(), precision=arguments.precision) as world:
        steps = {name: make_steps(name, arguments, world) for name in names}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        order = random.Random(0)  # same order on every worker
        for block in range(arguments.blocks + 1):
            for name in order.sample(names, len(names)):
                world.barrier()
                begin = time.perf_counter()
                step, finish = steps[name]
                for _ in range(arguments.steps):
                    step()
                finish()
                world.barrier()
                if block:
                    seconds[name].append((time.perf_counter() - begin) / arguments.steps)
        if world.rank == 0:
            report(arguments, world, seconds)


def report(arguments: argparse.Namespace, world: World, seconds: dict[str, list[float]]) -> None:
    """Print one row per engine; a ratio above 1 means that the engine is faster than that of the
    column."""
    print(
        f"{arguments.image_size} px, global batch {arguments.batch_size}, {arguments.precision}, "
        f"{world.size} workers on {world.device.type}, {torch.get_num_threads()} thread each, "
        f"{arguments.blocks} blocks of {arguments.steps} steps"
    )
    against = [name for name in ("plain", "eager", "single", "ddp") if name in seconds]
    print(f"{'':24}{'ms a step':>10}{'images/s':>10}" + "".join(f"{'over ' + name:>20}" for name in against))
    for name, times in seconds.items():
        median = summarise(times).median
        cells = "".join(f"{speedup(seconds[other], times)!s:>20}" for other in against)
        print(f"{name:24}{1000 * median:10.1f}{arguments.batch_size / median:10.1f}{cells}")


if __name__ == "__main__":
    main()
