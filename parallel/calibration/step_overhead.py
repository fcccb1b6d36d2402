"""Measure the overhead of a step: its time that the times of its parts do not explain."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from parallel.calibration.loading import endless, open_loader
from parallel.calibration.setup import Setup
from parallel.calibration.stopwatch import open_stopwatch
from parallel.cluster import Measured
from parallel.cluster.table import BACKWARD, FORWARD, PARAMETERS
from parallel.data.loader import Batch
from parallel.graph import Graph
from parallel.graph.ops import Op, Part
from parallel.models import build_model
from parallel.plans import Layout, make_plan
from parallel.program import Program
from parallel.program.lowering import lower
from parallel.runtime.communication.world import World
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime


class IsolatedStep:
    """A training step of the runtime in which this worker computes its local batch alone."""

    def __init__(self, setup: Setup) -> None:
        device, trainer = setup.world.device, setup.config.trainer
        model = build_model(setup.config.model, setup.data.num_classes, trainer.seed)
        options = replace(EngineOptions.from_config(trainer), compile=False, graphs=False)
        program = single_worker_program(setup.graph, setup.local_batch)
        self._engine = Runtime(program, model, World(0, 1, device, "none"), options)
        batches = endless(open_loader(setup, self._engine.image_positions, self._engine.label_positions))
        self.batch = next(batches)
        batches.close()
        self._watch = open_stopwatch(device)

    @property
    def launches(self) -> bool:
        """Whether the host only launches a step, which runs on a device behind it."""
        return self._watch.behind

    def train(self, batch: Batch) -> None:
        """Run a step on a batch. On a GPU this only enqueues it."""
        self._engine.train_step(batch.images, batch.labels, step=0, lr=0.0)

    def run(self) -> float:
        """Run a step and return its seconds.

        On a device that runs behind the host another one precedes it, so that the host has begun with
        this step before the device has, as in an epoch.
        """
        if self._watch.behind:
            self.train(self.batch)
        begin = self._watch.mark()
        self.train(self.batch)
        return self._watch.seconds(begin, self._watch.mark())

    def launch_s(self) -> float:
        """Run a step on an idle device and return the seconds in which the host enqueues it."""
        begin = time.perf_counter()
        self.train(self.batch)
        launch_s = time.perf_counter() - begin
        mark = self._watch.mark()
        self._watch.seconds(mark, mark)
        return launch_s


def single_worker_program(graph: Graph, batch_size: int) -> Program:
    """Return the program of one worker that computes everything."""
    return lower(graph, make_plan(graph, 1, {op.name: Layout(on=(0,)) for op in graph}), batch_size)


def step_passes(graph: Graph, batch_size: int) -> Iterator[tuple[Op, Part, str]]:
    """Yield the passes of an isolated step: op, part, and name of the pass."""
    program, trained = single_worker_program(graph, batch_size), graph.trained_ops
    for op in graph:
        part = program.part(op.name, 0, 0)
        if part is not None:
            yield op, part, FORWARD
            if op.name in trained:
                yield op, part, BACKWARD if any(name in trained for name in op.inputs) else PARAMETERS


def sum_of_parts_s(graph: Graph, batch_size: int, compute: Measured, precision: str) -> float:
    """Return the seconds of all ops and updates of an isolated step by the measured times."""
    program = single_worker_program(graph, batch_size)
    seconds = 0.0
    for op, part, name in step_passes(graph, batch_size):
        if name == FORWARD:
            seconds += compute.forward_s(op, part, precision)
        else:
            seconds += compute.backward_s(op, part, precision, name == BACKWARD)
    return seconds + sum(compute.update_s(bucket.size, precision) for bucket in program.buckets)
