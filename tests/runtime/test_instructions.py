"""Names of instructions in the error of a failed step and in torch's profiler."""

from __future__ import annotations

import re
from unittest.mock import patch

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from parallel.config import ClusterConfig
from parallel.graph import trace
from parallel.program.lowering import lower
from parallel.runtime.communication.opening import open_world
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.prepared import SegmentWork
from parallel.runtime.execution.runtime import Runtime
from parallel.runtime.execution.step import StepRun
from parallel.runtime.failure.errors import InstructionFailed
from parallel.runtime.failure.wording import describe_error
from parallel.strategies import ModelParallel, build_plan
from tests.support.small_models import CLASSES, build
from tests.support.workers import WorkerError, Workers

BATCH = 24


def train(workers: int, fails: str = "") -> list[str]:
    """Train one step and evaluate; instruction `fails` of worker 0 raises. Return the profiler's
    names."""
    network, shape = build("tower")
    graph = trace(network, shape)
    plan = build_plan(graph, workers, ModelParallel(micro_batches=6))
    program = lower(graph, plan, BATCH)
    torch.manual_seed(0)
    images, labels = torch.randn(BATCH, *shape), torch.randint(CLASSES, (BATCH,))
    forward = StepRun.forward

    def failing(run: StepRun, work: SegmentWork) -> None:
        if fails == f"F{work.segment.index}:{work.micro_batch}":
            raise ArithmeticError("no such number")
        forward(run, work)

    with open_world(ClusterConfig(device="cpu")) as world, patch.object(StepRun, "forward", failing):
        runtime = Runtime(program, network, world, EngineOptions(seed=0))
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            runtime.train_step(
                images[runtime.image_positions], labels[runtime.label_positions], step=0, lr=0.1
            )
        instructions = {str(step) for step in program.steps[world.rank]}
        # Updates that run as one kernel have one range, `U0 update …; U1 update …`.
        keys = [name for event in profiled.key_averages() for name in event.key.split("; ")]
        seen = [name for name in keys if name.split()[0] in instructions]
        assert {name.split()[0] for name in seen} == instructions
    return seen


def test_a_failing_step_names_its_instruction_and_shows_the_schedule_around_it() -> None:
    with pytest.raises(InstructionFailed) as raised:
        train(1, fails="F0:4")
    assert isinstance(raised.value.__cause__, ArithmeticError)
    sentence, head, *lines = str(raised.value).splitlines()
    assert re.fullmatch(r"F0:4 \(forward conv1 … loss:4\): ArithmeticError: no such number", sentence)
    assert head.startswith("worker 0, ")
    marked = [line for line in lines if line.endswith("<-- here")]
    assert len(marked) == 1 and marked[0].split()[1] == "F0:4"
    assert len(lines) <= 20


def test_the_other_workers_learn_the_instruction_in_one_line(workers: Workers) -> None:
    with pytest.raises(WorkerError, match=r"(?s)InstructionFailed: F\d:1 .*<-- here"):
        workers.run(2, train, 2, "F0:1")


def test_the_watch_publishes_one_line() -> None:
    sentence = "F0:1 (forward conv1): ArithmeticError: no such number"
    assert (
        describe_error(InstructionFailed(sentence, "worker 0, 3 steps:\n  0  F0:1  conv1   <-- here"))
        == sentence
    )


def test_updates_that_send_nothing_run_as_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parallel.program.lowering.BUCKET_BYTES", 256)
    network, shape = build("tower")
    program = lower(trace(network, shape), build_plan(trace(network, shape), 1, ModelParallel()), BATCH)
    assert len(program.buckets) > 1
    images, labels = torch.randn(BATCH, *shape), torch.randint(CLASSES, (BATCH,))
    with open_world(ClusterConfig(device="cpu")) as world:
        runtime = Runtime(program, network, world, EngineOptions(seed=0))
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            runtime.train_step(images, labels, step=0, lr=0.1)
    calls = {event.key: event.count for event in profiled.key_averages()}
    assert calls["aten::_fused_sgd_"] == 1


def test_the_profiler_shows_every_instruction_by_name(workers: Workers) -> None:
    names = workers.run(2, train, 2)
    assert any(name.startswith("F0:5 forward conv1 … ") for name in names[0])
    assert any(" update " in name for name in names[1])
