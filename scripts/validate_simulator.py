"""Hold the simulator against the clock: what it predicts of many plans, and what they take, interleaved in one run.

    torchrun --standalone --nproc-per-node 2 scripts/validate_simulator.py --out runs/validation
    python -m parallel.compare runs/validation

Calibrate first, for the same workers, classes and image size: `torchrun --standalone --nproc-per-node 2 -m
parallel.calibrate workers=2 data=digits trainer.batch_size=128` (docs/clusters.md). Of every batch size the plans are
all named ones, the search's optimum, its runners-up and random ones (validation_plans.py).

The plans take turns in blocks of random order, so that the machine's moods meet them alike. A turn is a new runtime,
untimed steps, and `--steps` timed ones between two barriers: more than a few runtimes at once would not fit the memory.
Medians and quartiles are over the blocks. The file is written after every block, so an interruption loses one.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import random
import shlex
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn
from validation_plans import Chooser, Predicted

from parallel.cli.result_tables import print_validation
from parallel.cluster import open_cluster
from parallel.cluster.machine import machine_of
from parallel.config import ClusterConfig, ModelConfig, require
from parallel.graph import Graph, trace
from parallel.models import build_model
from parallel.program import Program
from parallel.program.lowering import lower
from parallel.program.precision import DTYPES
from parallel.results.environment import collect_environment
from parallel.results.statistics import summarise
from parallel.results.validation import StepSplit, ValidatedPlan, Validation, write_validation
from parallel.results.validation import statistics as statistics_of
from parallel.runtime.communication.world import World, open_world
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime

LR, MOMENTUM, WEIGHT_DECAY = 1e-5, 0.9, 5e-4
"""So small a learning rate that the one batch is not learned by heart."""
WIDTH = 200
"""Columns of the console when it is no terminal."""


@dataclass(frozen=True)
class Turn:
    """One measurement of a plan."""

    step_s: float
    split: StepSplit
    """Mean over the workers."""


class Measurement:
    """Times plans on this worker, together with the others."""

    def __init__(self, arguments: argparse.Namespace, world: World, graph: Graph, model: nn.Module) -> None:
        self.arguments, self.world, self.graph, self.model = arguments, world, graph, model
        self.steps = itertools.count()
        generator = torch.Generator().manual_seed(arguments.seed)
        most, side = max(arguments.batch_sizes), arguments.image_size
        self.images = torch.randn(most, 3, side, side, generator=generator, dtype=DTYPES[arguments.precision])
        self.labels = torch.randint(arguments.classes, (most,), generator=generator)

    def turn(self, program: Program) -> Turn:
        """A runtime of its own, some steps, and its end."""
        arguments, world = self.arguments, self.world
        engine = Runtime(program, self.model, world, EngineOptions(
            seed=0, precision=arguments.precision, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY))
        images = self._here(self.images, engine.image_positions).contiguous(memory_format=torch.channels_last)
        labels = self._here(self.labels, engine.label_positions)
        for _ in range(arguments.warm_up):
            engine.train_step(images, labels, step=next(self.steps), lr=LR)
        gc.collect()
        world.barrier()
        engine.clock.reset()
        begin = time.perf_counter()
        for _ in range(arguments.steps):
            engine.train_step(images, labels, step=next(self.steps), lr=LR)
        own_end = time.perf_counter() - begin
        world.barrier()
        seconds = time.perf_counter() - begin
        own = engine.clock.split(seconds, own_end, world.gather(engine.clock.starts))
        engine.close()
        every = world.gather((own.compute_s + own.data_wait_s, own.communication_s, own.idle_s))
        mean = StepSplit(*(statistics.fmean(of) for of in zip(*every, strict=True)))
        return Turn(seconds / arguments.steps, mean.scaled(seconds / arguments.steps))

    def _here(self, rows: Tensor, positions: Sequence[int]) -> Tensor:
        return rows[positions].to(self.world.device)


def choose(arguments: argparse.Namespace, world: World, graph: Graph) -> tuple[str, list[Predicted]]:
    """The cluster's name and all plans. Raises `ValueError` if the cluster can't be opened."""
    config = ClusterConfig(file=arguments.cluster_file)
    cluster = open_cluster(config, world.size)
    found = []
    for batch_size in arguments.batch_sizes:
        begin = time.perf_counter()
        chooser = Chooser(graph, world.size, batch_size, cluster, arguments.precision)
        for plan in chooser.choose(arguments.runners_up, arguments.random, arguments.seed):
            if plan.memory_bytes > cluster.memory_bytes:
                tell(f"batch {batch_size}: {plan.name} left out, it needs {plan.memory_bytes / 1e9:.1f} GB a worker")
            else:
                found.append(plan)
        tell(f"batch {batch_size}: {sum(plan.batch_size == batch_size for plan in found)} plans chosen and predicted "
             f"in {time.perf_counter() - begin:.1f} s")
    return f"{cluster.name} {cluster.fingerprint}", found


def agree(arguments: argparse.Namespace, world: World, graph: Graph) -> tuple[str, list[Predicted]]:
    """Worker 0 chooses, all know. Raises its `ValueError` on all."""
    answer: tuple[str | None, str, list[Predicted]] = (None, "", [])
    if world.rank == 0:
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                answer = (None, *choose(arguments, world, graph))
            for message in dict.fromkeys(str(warning.message) for warning in caught):
                print(f"warning: {message}", file=sys.stderr, flush=True)
        except ValueError as error:
            answer = str(error), "", []
    error_text, cluster, found = world.gather(answer)[0]
    if error_text is not None:
        raise ValueError(error_text)
    return cluster, found


def measure(arguments: argparse.Namespace, world: World) -> None:
    """All blocks; worker 0 writes and prints."""
    config = ModelConfig(image_size=arguments.image_size)
    model = build_model(config, arguments.classes, seed=0)
    graph = trace(model, (3, arguments.image_size, arguments.image_size))
    cluster, chosen = agree(arguments, world, graph)
    programs = [lower(graph, plan.plan, plan.batch_size) for plan in chosen]
    measurement = Measurement(arguments, world, graph, model)
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    turns: list[list[Turn]] = [[] for _ in chosen]
    order = random.Random(arguments.seed)  # the same on every worker
    world.started()
    for block in range(1, arguments.blocks + 1):
        begin = time.perf_counter()
        for i in order.sample(range(len(chosen)), len(chosen)):
            turns[i].append(measurement.turn(programs[i]))
        if world.rank > 0:
            continue
        rows = tuple(row_of(plan, of, world.size) for plan, of in zip(chosen, turns, strict=True))
        device = machine_of(ClusterConfig(), world.size)["device"]
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        validation = Validation(
            model=config.label, image_size=arguments.image_size, num_classes=arguments.classes,
            precision=arguments.precision, cluster=cluster, device=device, threads=torch.get_num_threads(),
            started=started, command=shlex.join(sys.orig_argv), blocks=block, steps=arguments.steps,
            seed=arguments.seed, environment=collect_environment(gpus), rows=rows)
        write_validation(path_of(arguments, world.size), validation)
        so_far = statistics_of(rows)
        tell(f"block {block} of {arguments.blocks}: {len(rows)} plans in {time.perf_counter() - begin:.0f} s; mean "
             f"error so far {so_far.mean:.1%}, largest {so_far.largest:.1%}")
        if block == arguments.blocks:
            console = Console()
            print_validation(validation, console if console.is_terminal else Console(width=WIDTH))
            print(f"written: {path_of(arguments, world.size)}", flush=True)


def row_of(plan: Predicted, turns: Sequence[Turn], workers: int) -> ValidatedPlan:
    """What the turns of a plan come to: medians, and the mean shares of the split."""
    times = summarise([turn.step_s for turn in turns])
    shares = StepSplit(*(statistics.fmean(getattr(turn.split, part) / turn.step_s for turn in turns)
                     for part in ("compute_s", "exposed_s", "idle_s")))
    return ValidatedPlan(
        name=plan.name, kind=plan.kind, plan=str(plan.plan), workers=workers, batch_size=plan.batch_size,
        held_out=plan.held_out, predicted_s=plan.step_s, measured_s=times.median,
        first_quartile_s=times.first_quartile, third_quartile_s=times.third_quartile, predicted=plan.split,
        measured=shares.scaled(times.median))


def path_of(arguments: argparse.Namespace, workers: int) -> Path:
    """The file that is written: one for each number of workers."""
    return Path(arguments.out) / f"validation-{workers}.json"


def tell(text: str) -> None:
    """To worker 0's standard error."""
    print(text, file=sys.stderr, flush=True)


def counts(text: str) -> list[int]:
    """Comma-separated whole numbers."""
    return [int(part) for part in text.split(",")]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line. Raises `ValueError` for a number that cannot be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/validation", help="folder of the file that is written")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--classes", type=int, default=10, help="of the model, as in calibration")
    parser.add_argument("--batch-sizes", type=counts, default=[128, 96], help="global, comma-separated")
    parser.add_argument("--precision", default="fp32", choices=list(DTYPES))
    parser.add_argument("--blocks", type=int, default=5, help="turns of every plan")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a turn")
    parser.add_argument("--warm-up", type=int, default=1, help="untimed steps of a turn")
    parser.add_argument("--runners-up", type=int, default=5, help="of each batch size")
    parser.add_argument("--random", type=int, default=8, help="random plans of each batch size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cluster-file", default=None, help="instead of this machine's calibration")
    found = parser.parse_args(arguments)
    for name, least in (("blocks", 1), ("steps", 1), ("warm_up", 1), ("runners_up", 0), ("random", 0), ("classes", 2)):
        require(getattr(found, name) >= least, f"--{name.replace('_', '-')}", getattr(found, name),
                f"must be at least {least}")
    for batch_size in found.batch_sizes:
        require(batch_size >= 1, "--batch-sizes", batch_size, "must be at least 1")
    return found


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code: 2 for bad input, after one line from worker 0."""
    try:
        given = parse(arguments)
        with open_world(ClusterConfig()) as world:
            measure(given, world)
    except ValueError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
