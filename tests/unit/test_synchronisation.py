"""A training step never makes the host wait for the device."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from parallel.config import StrategyConfig
from parallel.graph import trace
from parallel.graph.box import Box
from parallel.graph.ops import dropout
from parallel.graph.ops.loss import CrossEntropy
from parallel.program.lowering import lower
from parallel.runtime.communication.world import World
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime
from parallel.runtime.failure.errors import InstructionFailed
from parallel.strategies import DataParallel, ModelParallel, OneWeirdTrick, Single, build_plan
from tests.support.device_audit import DeviceAudit, WouldSynchronise
from tests.support.gpu import needs_gpu
from tests.support.silent_transport import silent_transports, silent_world
from tests.support.small_models import CLASSES, MODELS, build

BATCH = 8
PLANS: dict[str, tuple[StrategyConfig, int]] = {
    "data_parallel": (DataParallel(), 2),
    "one_weird_trick a": (OneWeirdTrick(scheme="a"), 2),
    "one_weird_trick b": (OneWeirdTrick(scheme="b"), 2),
    "one_weird_trick c, every pass": (OneWeirdTrick(scheme="c", update="pass"), 2),
    "tensor": (ModelParallel(scheme="tensor"), 2),
    "pipeline": (ModelParallel(scheme="layers", micro_batches=4), 2),
}


def audited(
    model: str,
    strategy: StrategyConfig,
    world: World,
    *,
    precision: str = "fp32",
    hosts: tuple[int, ...] = (),
) -> list[str]:
    """Train and evaluate one step under the audit; return its operators."""
    network, shape = build(model)
    graph = trace(network, shape)
    program = lower(graph, build_plan(graph, world.size, strategy), BATCH, hosts)
    with silent_transports():
        runtime = Runtime(program, network, world, EngineOptions(seed=2**32 - 1, precision=precision))
    images = torch.randn(len(runtime.image_positions), *shape)
    labels = torch.randint(CLASSES, (len(runtime.label_positions),))
    steps = count()

    def step() -> None:
        runtime.train_step(images, labels, step=next(steps), lr=0.1)
        runtime.evaluate_step(images, labels)

    step()
    with DeviceAudit() as audit:
        step()
    return audit.operators


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", MODELS)
def test_one_worker_never_waits(model: str, precision: str) -> None:
    operators = audited(model, Single(), silent_world(0, 1), precision=precision)
    assert any("backward" in name for name in operators) and "aten._fused_sgd_.default" in operators


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("plan", PLANS)
def test_workers_with_messages_never_wait_but_for_messages(plan: str, rank: int) -> None:
    strategy, workers = PLANS[plan]
    audited("tower", strategy, silent_world(rank, workers))


def test_batch_statistics_and_sums_in_levels_never_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parallel.program.lowering.BUCKET_BYTES", 256)
    for rank in range(4):
        audited("residual", DataParallel(), silent_world(rank, 4), hosts=(0, 0, 1, 1))


def test_what_a_mask_consists_of_does_not_wait() -> None:
    key, samples = torch.tensor(dropout.step_key(1, 2)), torch.arange(5)
    columns = dropout.mask_columns(Box.whole((5, 3, 4)), (3, 4), torch.device("cpu"))
    with DeviceAudit():
        dropout._mask(key, samples, columns, 7, 0, 2.0, torch.float32)


def _as_before(self: CrossEntropy, part: Any, xs: Any, parameters: Any, context: Any) -> Tensor:
    """The loss, of the rows that have a label."""
    logits, labels = xs
    return torch.nn.functional.cross_entropy(logits[labels >= 0], labels[labels >= 0], reduction="none")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda: patch.object(CrossEntropy, "forward", _as_before), id="mask of labels"),
        pytest.param(
            lambda: patch.object(Tensor, "fill_", lambda self, value: self.copy_(torch.tensor(value))),
            id="key from the host",
        ),
    ],
)
def test_a_step_that_waits_is_found(change: Callable[[], Any]) -> None:
    with change(), pytest.raises((WouldSynchronise, InstructionFailed), match="the host"):
        audited("tower", Single(), silent_world(0, 1))


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda x: x.sum().item(), "the host reads"),
        (lambda x: float(x[0]), "the host reads"),
        (lambda x: bool((x > 0).any()), "the host reads"),
        (lambda x: x[x > 0], "the host counts"),
        (lambda x: x.index_put((x > 0,), x.sum()), "the host counts"),
        (lambda x: x[np.array([2, 0])], "the host"),
        (lambda x: x[[2, 0]], "the host"),
        (lambda x: x + torch.from_numpy(np.ones(4, dtype=np.float32)), "the host"),
        (lambda x: x * torch.tensor(3.0), "its own numbers"),
        (lambda x: torch.nonzero(x), "the host reads"),
        (lambda x: torch.equal(x, x), "the host reads"),
    ],
)
def test_the_audit_finds_what_waits(act: Callable[[Tensor], object], sentence: str) -> None:
    x = torch.randn(4)
    with DeviceAudit(), pytest.raises(WouldSynchronise, match=sentence):
        act(x)


def test_the_audit_lets_work_of_the_device_pass() -> None:
    x = torch.randn(4, requires_grad=True)
    with DeviceAudit():
        y = (2.0 * x + torch.zeros(4)).relu().index_select(0, torch.arange(2))
        y.sum().backward()


@needs_gpu
@pytest.mark.parametrize("model", MODELS)
def test_on_a_gpu_torch_finds_no_synchronisation(model: str) -> None:
    network, shape = build(model)
    graph, device = trace(network, shape), torch.device("cuda", 0)
    program = lower(graph, build_plan(graph, 1, Single()), BATCH)
    runtime = Runtime(program, network, World(0, 1, device, "none"), EngineOptions(seed=0))
    images, labels = torch.randn(BATCH, *shape, device=device), torch.zeros(BATCH, device=device).long()
    for step in range(2):
        runtime.train_step(images, labels, step=step, lr=0.1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(2, 5):
            runtime.train_step(images, labels, step=step, lr=0.1)
            runtime.evaluate_step(images, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
