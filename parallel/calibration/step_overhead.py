"""What is left when the parts of a step are added up: the overhead of a step; and the time to load an image."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Generator, Sequence
from dataclasses import replace

from parallel.calibration.op_times import Stopwatch
from parallel.cluster import Measured
from parallel.config import Config
from parallel.data import DataSet
from parallel.data.loader import Batch, Loader, LoaderOptions
from parallel.graph import Graph
from parallel.models import build_model
from parallel.plans import Layout, make_plan
from parallel.program import Program
from parallel.program.lowering import lower
from parallel.program.precision import DTYPES
from parallel.runtime.communication.world import World
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime

READ_AHEAD = 4
"""Batches that the loader may have made beforehand: they do not count."""


def alone(graph: Graph, batch_size: int) -> Program:
    """The program of one worker that computes everything: no messages."""
    return lower(graph, make_plan(graph, 1, {op.name: Layout(on=(0,)) for op in graph}), batch_size)


class WholeStep:
    """The runtime's own step, every worker for itself with a batch of this size, all at once."""

    def __init__(self, config: Config, data: DataSet, graph: Graph, world: World, batch_size: int) -> None:
        trainer = config.trainer
        self._engine = Runtime(
            alone(graph, batch_size), build_model(config.model, data.num_classes, trainer.seed),
            World(0, 1, world.device, "none"), replace(EngineOptions.from_config(trainer), compile=False),
        )
        positions = self._engine.image_positions, self._engine.label_positions
        batches = _endless(_loader(config, data, world, batch_size, *positions))
        self._batch = next(batches)
        batches.close()
        self._watch = Stopwatch(world.device)

    def run(self) -> float:
        """Seconds of a step."""
        begin = self._watch.mark()
        self._engine.train_step(self._batch.images, self._batch.labels, step=0, lr=0.0)
        return self._watch.seconds(begin, self._watch.mark())


def sum_of_parts_s(graph: Graph, batch_size: int, compute: Measured, precision: str) -> float:
    """The same by the table: the sum of all ops and updates."""
    program, trained, seconds = alone(graph, batch_size), graph.trained_ops, 0.0
    for op in graph:
        part = program.part(op.name, 0, 0)
        if part is not None:
            seconds += compute.forward_s(op, part, precision)
            if op.name in trained:
                seconds += compute.backward_s(op, part, precision, any(name in trained for name in op.inputs))
    return seconds + sum(compute.update_s(bucket.size, precision) for bucket in program.buckets)


def image_s(config: Config, data: DataSet, world: World, batch_size: int, budget_s: float) -> float:
    """Seconds of loading an image, every worker batches of this size, all at once: the mean over the workers."""
    positions = range(batch_size)
    batches = _endless(_loader(config, data, world, batch_size, positions, positions))
    for _ in range(READ_AHEAD):
        next(batches)
    world.barrier()
    begin, count = time.perf_counter(), 0
    while count < READ_AHEAD or time.perf_counter() - begin < budget_s:
        next(batches)
        count += 1
    seconds = (time.perf_counter() - begin) / (count * batch_size)
    batches.close()
    return statistics.fmean(world.gather(seconds))


def _endless(loader: Loader) -> Generator[Batch, None, None]:
    """The batches of one epoch after another."""
    for epoch in itertools.count():
        yield from loader.epoch(epoch)


def _loader(config: Config, data: DataSet, world: World, batch_size: int, images: Sequence[int],
            labels: Sequence[int]) -> Loader:
    options = LoaderOptions.from_config(config, data, DTYPES[config.trainer.precision])
    return Loader(data.train, replace(options, batch_size=batch_size), train=True, image_positions=images,
                  label_positions=labels, device=world.device)
