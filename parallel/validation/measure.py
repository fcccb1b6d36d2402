"""Measuring the plans of a validation on the workers that torchrun started.

The plans take turns in blocks of random order, so that slow changes of the machine's speed affect
all of them alike. A turn builds a runtime, runs untimed steps, and times some steps between two
barriers; only one runtime exists at a time, because a few of them would not fit in memory. Medians
and quartiles are over the blocks. The file is written after every block, so that an interruption
loses at most one.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from parallel.cluster import open_cluster
from parallel.cluster.machine import machine_of
from parallel.config import Config
from parallel.data.random_batch import random_batch
from parallel.graph import Graph, trace
from parallel.graph.configured import classes_of
from parallel.models import build_model
from parallel.program import Program
from parallel.program.lowering import lower
from parallel.program.precision import DTYPES
from parallel.results.command_line import recorded_command
from parallel.results.environment import collect_environment
from parallel.results.statistics import summarise
from parallel.results.validation import (
    StepSplit,
    ValidatedPlan,
    Validation,
    kept_validation,
    write_validation,
)
from parallel.results.validation import statistics as validation_statistics
from parallel.runtime.communication.device import choose_device
from parallel.runtime.communication.gpu_facts import gpu_facts
from parallel.runtime.communication.opening import open_world
from parallel.runtime.communication.world import World
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime
from parallel.validation.options import ValidationOptions
from parallel.validation.plans import PlanChooser, PredictedPlan

LR = 1e-5
"""Small enough that the single batch is not memorised."""
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Turn:
    """One measurement of a plan."""

    step_s: float
    split: StepSplit


class Measurement:
    """Measures plans on this worker, together with the other workers."""

    def __init__(
        self,
        model: nn.Module,
        batch: tuple[Tensor, Tensor],
        precision: str,
        options: ValidationOptions,
        world: World,
    ) -> None:
        self.model, self.precision, self.options, self.world = model, precision, options, world
        self.images, self.labels = batch  # [n, 3, h, w], [n]; smaller batches are their first rows
        self.steps = itertools.count()

    def turn(self, program: Program) -> Turn:
        """Build a runtime, run untimed and timed steps, and close it."""
        world, options = self.world, self.options
        engine = Runtime(
            program,
            self.model,
            world,
            EngineOptions(seed=0, precision=self.precision, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY),
        )
        images = self._on_device(self.images, engine.image_positions)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = self._on_device(self.labels, engine.label_positions)
        for _ in range(options.warm_up):
            engine.train_step(images, labels, step=next(self.steps), lr=LR)
        gc.collect()
        engine.complete()  # what the clock has seen begin must end before it is reset
        world.barrier()
        engine.clock.reset()
        begin = time.perf_counter()
        for _ in range(options.steps):
            engine.train_step(images, labels, step=next(self.steps), lr=LR)
        engine.complete()
        engine.clock.finished()
        world.barrier()
        seconds = time.perf_counter() - begin
        engine.clock.ended()
        own = engine.clock.split(seconds, world.gather(engine.clock.starts))
        engine.close()
        splits = world.gather((own.compute_s + own.data_wait_s, own.communication_s, own.idle_s))
        mean = StepSplit(*(statistics.fmean(parts) for parts in zip(*splits, strict=True)))
        return Turn(seconds / options.steps, mean.scaled(seconds / options.steps))

    def _on_device(self, rows: Tensor, positions: Sequence[int]) -> Tensor:
        return rows[positions].to(self.world.device)


def validate(config: Config, options: ValidationOptions, tell: Tell) -> tuple[Path, Validation] | None:
    """Measure all blocks. Every worker calls this; worker 0 writes the file and returns its path
    and content."""
    config.cluster.require_own_gpus("validation")
    choose_device(config.cluster)
    with open_world(config.cluster, precision=config.trainer.precision) as world:
        return _validate(config, options, world, tell)


def validated_plan(plan: PredictedPlan, turns: Sequence[Turn], workers: int) -> ValidatedPlan:
    """Return a plan with its measurement: median and quartiles of the turns, and the mean shares of
    the split."""
    times = summarise([turn.step_s for turn in turns])
    shares = StepSplit(
        *(
            statistics.fmean(getattr(turn.split, part) / turn.step_s for turn in turns)
            for part in ("compute_s", "exposed_s", "idle_s")
        )
    )
    return ValidatedPlan(
        name=plan.name,
        kind=plan.kind,
        plan=str(plan.plan),
        workers=workers,
        batch_size=plan.batch_size,
        held_out=plan.held_out,
        predicted_s=plan.step_s,
        measured_s=times.median,
        first_quartile_s=times.first_quartile,
        third_quartile_s=times.third_quartile,
        predicted=plan.split,
        measured=shares.scaled(times.median),
    )


def _validate(
    config: Config, options: ValidationOptions, world: World, tell: Tell
) -> tuple[Path, Validation] | None:
    trainer, shape = config.trainer, (3, config.model.image_size, config.model.image_size)
    model = build_model(config.model, classes_of(config), seed=0)
    graph = trace(model, shape)
    cluster, digest, plans = _agree(config, options, world, graph, tell)
    hosts, collectives = world.host_of, world.collectives
    programs = [lower(graph, plan.plan, plan.batch_size, hosts, collectives=collectives) for plan in plans]
    batch = random_batch(
        max(options.batch_sizes),
        shape,
        classes_of(config),
        seed=trainer.seed,
        dtype=DTYPES[trainer.precision],
    )
    measurement = Measurement(model, batch, trainer.precision, options, world)
    path = Path(options.out) / f"validation-{world.size}.json"
    header = _header(config, options, world, cluster)
    turns: list[list[Turn]] = [[] for _ in plans]
    order = random.Random(trainer.seed)  # the same on every worker
    validation = None
    world.started()
    for block in range(1, options.blocks + 1):
        begin = time.perf_counter()
        for i in order.sample(range(len(plans)), len(plans)):
            turns[i].append(measurement.turn(programs[i]))
        if world.rank > 0:
            continue
        rows = tuple(validated_plan(plan, own, world.size) for plan, own in zip(plans, turns, strict=True))
        validation = header(blocks=block, rows=rows)
        for file in (path, kept_validation(config.cluster.cache, digest)):
            write_validation(file, validation)
        so_far = validation_statistics(rows)
        tell(
            f"block {block} of {options.blocks}: {len(rows)} plans in {time.perf_counter() - begin:.0f} s; "
            f"mean error so far {so_far.mean:.1%}, largest {so_far.largest:.1%}"
        )
    return None if validation is None else (path, validation)


def _agree(
    config: Config, options: ValidationOptions, world: World, graph: Graph, tell: Tell
) -> tuple[str, str, list[PredictedPlan]]:
    """Return worker 0's cluster and choice of plans on every worker, as `_choose`. Its `ValueError` is
    raised on every worker."""

    def chosen() -> tuple[str, str, list[dict[str, Any]]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            name, digest, plans = _choose(config, options, world, graph, tell)
        for message in dict.fromkeys(str(warning.message) for warning in caught):
            tell(f"warning: {message}")
        return name, digest, [plan.to_plain() for plan in plans]

    cluster, digest, plans = world.from_first(chosen)
    return cluster, digest, [PredictedPlan.from_plain(values, graph, world.size) for values in plans]


def _choose(
    config: Config, options: ValidationOptions, world: World, graph: Graph, tell: Tell
) -> tuple[str, str, list[PredictedPlan]]:
    """Return the cluster's name with its fingerprint, its digest, and the plans of all batch sizes.
    `ValueError`: the cluster cannot be opened."""
    cluster = open_cluster(
        config.cluster, world.size, world.node_workers, channels_last=config.trainer.channels_last
    )
    plans = []
    for batch_size in options.batch_sizes:
        begin = time.perf_counter()
        chooser = PlanChooser(graph, world.size, batch_size, cluster, config.trainer.precision)
        chosen = chooser.choose(options.runners_up, options.random, config.trainer.seed)
        fitting = [plan for plan in chosen if plan.memory_bytes <= cluster.memory_bytes]
        for plan in chosen:
            if plan not in fitting:
                memory = f"{plan.memory_bytes / 1e9:.1f} GB per worker"
                tell(f"batch {batch_size}: {plan.name} left out: needs {memory}")
        plans += fitting
        elapsed = time.perf_counter() - begin
        tell(f"batch {batch_size}: {len(fitting)} plans chosen and predicted in {elapsed:.1f} s")
    return f"{cluster.name} {cluster.fingerprint}", cluster.digest, plans


def _header(
    config: Config, options: ValidationOptions, world: World, cluster: str
) -> Callable[..., Validation]:
    """Return the validation without its measurements: `blocks` and `rows` are missing."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    machine = machine_of(config.cluster, [world.size])  # `network`: of an emulated cluster
    return partial(
        Validation,
        model=config.model.label,
        image_size=config.model.image_size,
        num_classes=classes_of(config),
        precision=config.trainer.precision,
        cluster=cluster,
        device=", ".join(machine[key] for key in ("device", "network") if key in machine),
        threads=torch.get_num_threads(),
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=recorded_command(os.environ, sys.orig_argv),
        steps=options.steps,
        seed=config.trainer.seed,
        environment=collect_environment(gpus, gpu_facts(world.device)),
    )
