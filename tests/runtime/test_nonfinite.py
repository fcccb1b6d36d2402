"""Every worker names the step and op of the first infinite or NaN value, and the run ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from parallel.config import ClusterConfig, TrainerConfig
from parallel.data.random_batch import random_batch
from parallel.graph import trace
from parallel.graph.ops import Context, Op, Part
from parallel.plans import read_plan
from parallel.program.lowering import lower
from parallel.runtime.communication.opening import open_world
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime
from parallel.runtime.failure.errors import NotFinite
from parallel.runtime.failure.nonfinite import NonfiniteCheck
from tests.support.commands import run_module
from tests.support.small_models import CLASSES, build
from tests.support.workers import Workers

BATCH = 8
SPLIT = (
    "workers: 2\nops:\n  conv1: {n: 2, on: [0, 1]}\n  conv2: {h: 2, on: [0, 1]}\n  fc3: {c: 2, on: [0, 1]}\n"
)
PIPELINE = "workers: 2\nmicro_batches: 2\nops:\n  conv1: {on: [0]}\n  pool2: {on: [1]}\n"
PASSES = (
    "workers: 2\nmicro_batches: 2\nscheme: c\nupdate: pass\nops:\n  conv1: {n: 2, on: [0, 1]}\n"
    "  fc3: {c: 2, on: [0, 1]}\n"
)


class InfiniteBackward(torch.autograd.Function):
    """Identity whose gradient is infinite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * float("inf")


def ended(text: str, parameter: str, backward: str, steps: int) -> str | None:
    """Return the error of a worker whose last step has an infinity in a parameter or in an op's backward."""
    network, shape = build("tower")
    graph = trace(network, shape)
    program = lower(graph, read_plan(text, graph), BATCH)
    plan = program.plan
    right = Op.forward if not backward else type(graph[backward]).forward

    def forward(
        self: Op, part: Part, xs: Sequence[Tensor], held: Mapping[str, Tensor], context: Context
    ) -> Tensor:
        xs = [InfiniteBackward.apply(xs[0])] if self.name == backward else xs
        return right(self, part, xs, held, context)

    with (
        open_world(ClusterConfig(device="cpu")) as world,
        patch.object(type(graph[backward]) if backward else Op, "forward", forward),
    ):
        check = NonfiniteCheck(graph, world, BATCH, plan.micro_batches, plan.update == "pass")
        engine = Runtime(program, network, world, EngineOptions(0, "fp64", momentum=0.9), observer=check)
        for step in range(steps):
            if step == steps - 1 and parameter:
                op, _, name = parameter.rpartition(".")
                with torch.no_grad():
                    for tensor in [engine.parameters[op][name]] if name in engine.parameters[op] else []:
                        tensor[(0,) * tensor.dim()] = float("inf")
            images, labels = random_batch(BATCH, shape, CLASSES, seed=step, dtype=torch.float64)
            loss = engine.train_step(
                images[engine.image_positions], labels[engine.label_positions], step=step, lr=0.01
            )
            try:
                check.after(step, loss)
            except NotFinite as error:
                return str(error)  # in order, so that the workers can be used again
    return None


@pytest.mark.parametrize(
    "plan, parameter, backward, begins",
    [
        (
            SPLIT,
            "conv2.weight",
            "",
            "step 2: op conv2 (worker 0, forward) gave the first non-finite value (loss ",
        ),
        (SPLIT, "fc3.bias", "", "step 2: op fc3 (worker 0, forward) gave"),
        (SPLIT, "", "pool2", "step 0: op pool2 (worker 0, backward, gradient of its input relu2) gave"),
        (PIPELINE, "conv1.bias", "", "step 2: op conv1 (worker 0, micro-batch 0, forward) gave"),
        (PIPELINE, "fc3.weight", "", "step 2: op fc3 (worker 1, micro-batch 0, forward) gave"),
        (
            PIPELINE,
            "",
            "pool2",
            "step 0: op pool2 (worker 1, micro-batch 0, backward, gradient of its input relu2) gave",
        ),
        (
            PASSES,
            "",
            "drop4",
            "step 0: op drop4 (worker 0, micro-batch 0, backward, gradient of its input relu3) gave",
        ),
    ],
    ids=lambda value: {SPLIT: "split", PIPELINE: "pipeline", PASSES: "passes"}.get(
        value, value[:12] or "none"
    ),
)
def test_all_workers_name_the_op_where_it_begins(
    plan: str, parameter: str, backward: str, begins: str, workers: Workers
) -> None:
    found = workers.run(2, ended, plan, parameter, backward, 3)
    assert found[0] is not None and found[0].startswith(begins), found
    assert found[1] == found[0]


def test_nothing_is_found_where_all_is_finite(workers: Workers) -> None:
    assert workers.run(2, ended, SPLIT, "", "", 2) == [None, None]


HOT = (
    "model=small",
    "data.train_images=24",
    "data.val_images=12",
    "trainer.batch_size=8",
    "trainer.epochs=3",
    "tracker=none",
    "trainer.lr=1e6",
)


@pytest.mark.parametrize("strategy", ["data_parallel", "ddp"])
def test_a_run_that_checks_ends_with_the_step_and_the_op(strategy: str, tmp_path: Path) -> None:
    done = run_module(
        2, "parallel.train", *HOT, f"strategy={strategy}", "trainer.check_finite=true", folder=tmp_path
    )
    assert done.codes == [1, 1]
    assert (
        done.err.count("error: step 2: op ") == 1 and "gave the first non-finite value (loss nan)" in done.err
    )
    assert "Traceback" not in done.err
    assert list(tmp_path.rglob("record.json")) == []


def test_a_run_that_does_not_check_ends_after_the_epoch(tmp_path: Path) -> None:
    done = run_module(2, "parallel.train", *HOT, "strategy=data_parallel", folder=tmp_path)
    assert done.codes == [1, 1]
    assert (
        done.err.count("error: the mean training loss of epoch 1 is nan: trainer.check_finite=true names")
        == 1
    )
    assert "Traceback" not in done.err
    assert list(tmp_path.rglob("record.json")) == []


def test_it_cannot_look_into_what_is_compiled() -> None:
    with pytest.raises(
        ValueError, match=r"trainer.check_finite=True cannot look into what trainer.compile=true"
    ):
        TrainerConfig(check_finite=True, compile=True)
