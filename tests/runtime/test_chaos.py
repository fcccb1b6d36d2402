"""Chaos mode: delayed messages change no results, and reveal a missing wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from parallel.config import ClusterConfig, StrategyConfig
from parallel.graph import trace
from parallel.plans import read_plan
from parallel.program.lowering import lower
from parallel.runtime.communication.chaos import Chaos, Postponed
from parallel.runtime.communication.open_transport import open_transport
from parallel.runtime.communication.opening import open_world
from parallel.runtime.communication.transport import Receive
from parallel.runtime.execution.gathered import gathered
from parallel.runtime.execution.held_bucket import HeldBucket
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.parameters import Parameters
from parallel.runtime.execution.runtime import Runtime
from parallel.runtime.execution.step import StepRun
from parallel.runtime.instrumentation.clock import Clock
from parallel.strategies import DataParallel, ModelParallel, OneWeirdTrick, build_plan
from tests.support.setups import nothing
from tests.support.small_models import CLASSES, build, graph_of
from tests.support.workers import WorkerError, Workers

CHAOS = Chaos(seed=3, max_delay_s=0.003)
BATCH = 12
OPTIONS = EngineOptions(seed=0, momentum=0.9)
NAN = float("nan")


def test_postponed_actions_run_in_order_and_not_too_early() -> None:
    ran: list[int] = []
    postponed = Postponed(Chaos(max_delay_s=1.0), rank=0, number=0)
    for i in range(3):
        postponed.add(lambda i=i: ran.append(i))  # type: ignore[misc]
    postponed.run_due()
    assert ran == []
    postponed._actions = type(postponed._actions)((0.0, action) for _, action in postponed._actions)
    postponed.run_all()
    assert ran == [0, 1, 2]


def test_the_seed_decides_the_delays() -> None:
    def delays(seed: int, rank: int) -> list[float]:
        postponed = Postponed(Chaos(seed, 0.01), rank, 0)
        return [postponed._random.uniform(0, 1) for _ in range(4)]

    assert delays(1, 0) == delays(1, 0)
    assert delays(1, 0) != delays(2, 0) != delays(2, 1)


def test_a_delay_of_more_than_a_second_is_refused() -> None:
    with pytest.raises(ValueError, match="max_delay_s=2.0 must be from 0 to 1 s"):
        Chaos(max_delay_s=2.0)


def train(
    plan: str, shared_memory: bool, chaos: Chaos | None, changed: tuple[type, str, Callable[..., Any]] | None
) -> dict[tuple[str, str], Tensor]:
    """Return the weights after some steps, on worker 0; `changed` is a method of the runtime and
    its substitute."""
    network, shape = build("tower")
    graph = trace(network, shape)
    program = lower(graph, read_plan(plan, graph), BATCH)
    torch.manual_seed(5)
    images, labels = torch.randn(BATCH, *shape), torch.randint(CLASSES, (BATCH,))
    with open_world(ClusterConfig(device="cpu", shared_memory=shared_memory), chaos) as world:
        if changed is None:
            return steps(Runtime(program, network, world, OPTIONS), images, labels)
        where, name, instead = changed
        # A worker whose connection broke gives the others time to say why; here there is no such cause.
        with patch.object(where, name, instead), patch("parallel.runtime.failure.blame.BROKEN_S", 0.5):
            return steps(Runtime(program, network, world, OPTIONS), images, labels)


def steps(runtime: Runtime, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    for step in range(3):
        runtime.train_step(
            images[runtime.image_positions], labels[runtime.label_positions], step=step, lr=0.1
        )
    weights = gathered(runtime, "weights", runtime.world)
    runtime.close()
    return weights


PLANS = [
    (2, DataParallel()),
    (3, ModelParallel(micro_batches=3)),
    (2, OneWeirdTrick(scheme="c", update="pass")),
    (3, ModelParallel(scheme="tensor")),
]


def text_of(workers: int, strategy: StrategyConfig) -> str:
    return str(build_plan(graph_of("tower"), workers, strategy))


@pytest.mark.parametrize(
    ("count", "strategy"), PLANS, ids=[f"{n} {s.name} {s.scheme or ''}" for n, s in PLANS]
)
@pytest.mark.parametrize("shared_memory", [True, False], ids=["memory", "network"])
def test_delays_change_no_weight(
    workers: Workers, count: int, strategy: StrategyConfig, shared_memory: bool
) -> None:
    plan = text_of(count, strategy)
    late, right = (workers.run(count, train, plan, shared_memory, chaos, None)[0] for chaos in (CHAOS, None))
    assert late.keys() == right.keys()
    assert all(torch.equal(late[name], right[name]) for name in right)


def held_parameters(parameters: Parameters, op: str) -> dict[str, Tensor]:
    """Return an op's parameters without waiting for the gathered weights."""
    return parameters._of_op[op]


MISSING = {
    "gathered weights": (Parameters, "__getitem__", held_parameters),
    "a gather": (HeldBucket, "finish_gather", nothing),
    "summed gradients": (HeldBucket, "finish_sync", nothing),
    "weights before they are collected": (Parameters, "wait_for_weights", nothing),
}


@pytest.mark.parametrize("missing", MISSING)
@pytest.mark.parametrize("shared_memory", [True, False], ids=["memory", "network"])
def test_a_missing_wait_shows(workers: Workers, missing: str, shared_memory: bool) -> None:
    plan = text_of(2, DataParallel())
    right = workers.run(2, train, plan, shared_memory, None, None)[0]
    try:
        wrong = workers.run(2, train, plan, shared_memory, CHAOS, MISSING[missing], timeout=120.0)[0]
    except WorkerError as error:
        assert "never waited for" in str(error)
    else:
        assert any(not torch.equal(wrong[name], right[name]) for name in right)


def test_what_is_only_sent_must_be_waited_for(workers: Workers) -> None:
    plan = text_of(2, ModelParallel())
    with pytest.raises(
        WorkerError, match=r"exchange \d+ of micro-batch 0, forward starts again and was never waited"
    ):
        workers.run(2, train, plan, True, CHAOS, (StepRun, "close", nothing), timeout=120.0)


def read_early_and_late(shared_memory: bool) -> list[list[float]]:
    """Return, for each worker, an element of the received tensor before the wait, after it, and
    after release."""
    with open_world(ClusterConfig(device="cpu", shared_memory=shared_memory), CHAOS) as world:
        transport, peer = open_transport(world, Clock(world.device)), 1 - world.rank
        place = torch.zeros(3)
        sent = torch.full((3,), float(world.rank))
        message = transport.start(("placed",), [(peer, sent)], [Receive(peer, (3,), torch.float32, place)])
        other = transport.start(("borrowed",), [(peer, sent)], [Receive(peer, (3,), torch.float32)])
        before = place[0].item()
        (after,) = transport.wait(message)
        transport.release(message)
        (borrowed,) = transport.wait(other)
        read = borrowed[0].item()
        transport.release(other)
        transport.close()
        return [before, after[0].item(), read, borrowed[0].item()]


@pytest.mark.parametrize("shared_memory", [True, False], ids=["memory", "network"])
def test_received_tensors_are_readable_from_wait_to_release(workers: Workers, shared_memory: bool) -> None:
    seen = workers.run(2, read_early_and_late, shared_memory)
    assert seen[0] == pytest.approx([NAN, 1.0, 1.0, NAN], nan_ok=True)
    assert seen[1] == pytest.approx([NAN, 0.0, 0.0, NAN], nan_ok=True)
