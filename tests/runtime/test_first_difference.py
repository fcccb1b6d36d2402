"""The comparison names an op that is wrong on purpose, and the location of the error."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from parallel.config import ClusterConfig
from parallel.graph import trace
from parallel.graph.ops import Context, Op, Part
from parallel.plans import read_plan
from parallel.runtime.execution import parameters
from parallel.verification.parity import TOLERANCE, Case, Difference, compare_cases
from tests.support.small_models import build
from tests.support.workers import Workers


class WrongBackward(torch.autograd.Function):
    """Identity whose gradient is 0.1 % too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * 1.001


def broken(kind: type[Op], name: str, fault: str, rank: int) -> Any:
    """Patch the forward of `kind` so that it is wrong for the op `name` on worker `rank`."""
    right = kind.forward

    def forward(
        self: Op, part: Part, xs: Sequence[Tensor], held: Mapping[str, Tensor], context: Context
    ) -> Tensor:
        if self.name != name or os.environ["RANK"] != str(rank):
            return right(self, part, xs, held, context)
        if fault == "input":
            xs = [WrongBackward.apply(xs[0]), *xs[1:]]
        if fault == "weight":
            held = {**held, "weight": WrongBackward.apply(held["weight"])}
        if fault == "halo":  # the row from the neighbour is zero
            xs = [torch.cat([xs[0][:, :, :1] * 0, xs[0][:, :, 1:]], dim=2)]
        out = right(self, part, xs, held, context)
        if fault == "statistics" and context.training:
            context.buffers[self.name]["running_var"].mul_(1.001)
        return out * 1.001 if fault == "forward" or (fault == "evaluation" and not context.training) else out

    return patch.object(kind, "forward", forward)


RESIDUAL = """
workers: 2
ops:
  conv1: {n: 2, on: [0, 1]}
"""


def faulty(model: str, text: str, op: str, fault: str, rank: int) -> Difference:
    network, shape = build(model)
    graph = trace(network, shape)
    case, cpu = Case(network, read_plan(text, graph), shape, 8, 2), ClusterConfig(device="cpu")
    if fault == "update":
        right = parameters.sgd

        def sgd(*args: Any, lr: float, **options: Any) -> None:
            right(*args, lr=lr * (1.001 if os.environ["RANK"] == str(rank) else 1), **options)

        with patch.object(parameters, "sgd", sgd):
            return compare_cases([case], cpu)[0]
    with broken(type(graph[op]) if op in graph else Op, op, fault, rank):
        return compare_cases([case], cpu)[0]


TOWER = """
workers: 2
ops:
  conv1: {n: 2, on: [0, 1]}
  conv2: {h: 2, on: [0, 1]}
  pool2: {w: 2, on: [1, 0]}
  fc3: {k: 2, on: [0, 1]}
  relu3: {c: 2, on: [0, 1]}
  fc5: {on: [1]}
"""
PIPELINE = """
workers: 2
micro_batches: 2
ops:
  conv1: {on: [0]}
  pool2: {on: [1]}
"""
PASSES = """
workers: 2
micro_batches: 2
scheme: c
update: pass
ops:
  conv1: {n: 2, on: [0, 1]}
  fc3: {c: 2, on: [0, 1]}
"""


@pytest.mark.parametrize(
    "plan, op, fault, rank, begins",
    [
        (TOWER, "conv1", "forward", 1, "step 0, forward of conv1, worker 1, box [4:8, 0:7, 0:9, 0:9]: "),
        (TOWER, "conv2", "halo", 1, "step 0, forward of conv2, worker 1, box [0:8, 0:10, 2:3, 0:4]: "),
        (TOWER, "pool2", "forward", 0, "step 0, forward of pool2, worker 0, box [0:8, 0:10, 0:3, 1:3]: "),
        (
            TOWER,
            "fc3",
            "forward",
            1,
            "step 0, forward of fc3, worker 0 and others, a sum of parts, box [0:8, 0:11]: ",
        ),
        (TOWER, "pool2", "input", 1, "step 0, backward of pool2, gradient of its input relu2, worker "),
        (TOWER, "conv2", "input", 0, "step 0, backward of conv2, gradient of its input pool1, worker "),
        (TOWER, "conv2", "weight", 1, "step 0, backward of conv2, gradient of its weight: "),
        (TOWER, "fc5", "weight", 1, "step 0, backward of fc5, gradient of its weight: "),
        (TOWER, "conv2", "update", 1, "step 0, update of conv"),
        (PIPELINE, "pool2", "forward", 1, "step 0, forward of pool2, worker 1, box ["),
        (
            PIPELINE,
            "drop4",
            "input",
            1,
            "step 0, backward of drop4, gradient of its input relu3, worker 1, box [",
        ),
        (PASSES, "fc4", "forward", 0, "step 0, forward of fc4, worker 0, box [0:"),
        (
            PASSES,
            "conv2",
            "input",
            1,
            "step 0, backward of conv2, gradient of its input pool1, worker 1, box [2:4, ",
        ),
    ],
    ids=lambda value: (
        {TOWER: "tower", PIPELINE: "pipeline", PASSES: "passes"}.get(value)
        if "workers" in str(value)
        else str(value)[:12]
    ),
)
def test_the_broken_op_is_named(
    plan: str, op: str, fault: str, rank: int, begins: str, workers: Workers
) -> None:
    found = workers.run(2, faulty, "tower", plan, op, fault, rank)[0]
    assert not found.ok
    assert found.first.startswith(begins), found


@pytest.mark.parametrize(
    "model, op, fault, rank, begins",
    [
        ("tower", "fc4", "evaluation", 0, "step 0, evaluation's loss: "),
        ("residual", "bn1", "statistics", 1, "step 0, running statistics bn1.running_var: "),
    ],
)
def test_evaluation_and_running_statistics_are_compared(
    model: str, op: str, fault: str, rank: int, begins: str, workers: Workers
) -> None:
    found = workers.run(2, faulty, model, RESIDUAL, op, fault, rank)[0]
    assert not found.ok
    assert found.first.startswith(begins), found
    assert found.gradients <= TOLERANCE


def test_nothing_is_named_where_nothing_differs(workers: Workers) -> None:
    found = workers.run(2, faulty, "tower", TOWER, "no such op", "none", 0)[0]
    assert found.ok and found.first == ""
