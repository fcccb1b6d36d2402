"""Measure the overhead of a step and the time to load an image.

The overhead is the time of a step that the times of its parts do not explain.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Generator, Sequence
from dataclasses import replace

from parallel.calibration.setup import Setup
from parallel.calibration.stopwatch import Stopwatch
from parallel.cluster import Measured
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
"""Batches that the loader may have prepared before the measurement; they are not counted."""


class IsolatedStep:
    """A training step of the runtime in which this worker computes its local batch alone."""

    def __init__(self, setup: Setup) -> None:
        device, trainer = setup.world.device, setup.config.trainer
        model = build_model(setup.config.model, setup.data.num_classes, trainer.seed)
        options = replace(EngineOptions.from_config(trainer), compile=False)
        program = single_worker_program(setup.graph, setup.local_batch)
        self._engine = Runtime(program, model, World(0, 1, device, "none"), options)
        batches = _endless(_loader(setup, self._engine.image_positions, self._engine.label_positions))
        self._batch = next(batches)
        batches.close()
        self._watch = Stopwatch(device)

    def run(self) -> float:
        """Run a step and return its seconds."""
        begin = self._watch.mark()
        self._engine.train_step(self._batch.images, self._batch.labels, step=0, lr=0.0)
        return self._watch.seconds(begin, self._watch.mark())


def single_worker_program(graph: Graph, batch_size: int) -> Program:
    """Return the program of one worker that computes everything."""
    return lower(graph, make_plan(graph, 1, {op.name: Layout(on=(0,)) for op in graph}), batch_size)


def sum_of_parts_s(graph: Graph, batch_size: int, compute: Measured, precision: str) -> float:
    """Return the seconds of all ops and updates of an isolated step by the measured times."""
    program = single_worker_program(graph, batch_size)
    trained = graph.trained_ops
    seconds = 0.0
    for op in graph:
        part = program.part(op.name, 0, 0)
        if part is not None:
            seconds += compute.forward_s(op, part, precision)
            if op.name in trained:
                seconds += compute.backward_s(op, part, precision, any(name in trained for name in op.inputs))
    return seconds + sum(compute.update_s(bucket.size, precision) for bucket in program.buckets)


def loading_s_per_image(setup: Setup, budget_s: float) -> float:
    """Return the seconds to load an image while all workers load: the mean over the workers."""
    positions = range(setup.local_batch)
    batches = _endless(_loader(setup, positions, positions))
    for _ in range(READ_AHEAD):
        next(batches)
    setup.world.barrier()
    begin, count = time.perf_counter(), 0
    while count < READ_AHEAD or time.perf_counter() - begin < budget_s:
        next(batches)
        count += 1
    seconds = (time.perf_counter() - begin) / (count * setup.local_batch)
    batches.close()
    return statistics.fmean(setup.world.gather(seconds))


def _endless(loader: Loader) -> Generator[Batch, None, None]:
    """Yield the batches of one epoch after another."""
    for epoch in itertools.count():
        yield from loader.epoch(epoch)


def _loader(setup: Setup, images: Sequence[int], labels: Sequence[int]) -> Loader:
    options = LoaderOptions.from_config(setup.config, setup.data, DTYPES[setup.precision])
    return Loader(
        setup.data.train,
        replace(options, batch_size=setup.local_batch),
        train=True,
        image_positions=images,
        label_positions=labels,
        device=setup.world.device,
    )
