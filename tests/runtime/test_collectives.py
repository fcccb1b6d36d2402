"""Gradient sums and gathers by the backend's collectives, as over NCCL, here over gloo's: exact for every plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from parallel.checkpoints.checkpoint import folder_name
from parallel.config import ClusterConfig, StrategyConfig
from parallel.graph import trace
from parallel.plans import read_plan
from parallel.program.lowering import lower
from parallel.runtime.communication.chaos import Chaos
from parallel.runtime.communication.opening import open_world
from parallel.runtime.communication.transport import Transport
from parallel.runtime.communication.world import World
from parallel.runtime.execution.collective_bucket import CollectiveBucket
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime
from parallel.runtime.instrumentation.phases import HostPhases, Phase
from parallel.strategies import DataParallel, ModelParallel, OneWeirdTrick, build_plan
from parallel.verification.parity import Difference
from tests.support.gpu import needs_two_gpus
from tests.support.named_plans import WRITTEN
from tests.support.parity import compare, sent_bytes
from tests.support.saved_states import STEPS as SAVED_STEPS
from tests.support.saved_states import load, save
from tests.support.setups import Setup
from tests.support.side_streams import AsLateAsPossible, AtOnce
from tests.support.small_models import build, graph_of
from tests.support.workers import WorkerError, Workers

STEPS = 3
LIMIT = 64
"""Bytes of a full bucket: most parameters have a bucket of their own, and small ones share some."""
SMALL = Setup(collectives=True, collective_bytes=LIMIT)
LATE = Chaos(seed=3, max_delay_s=0.003)


NAMED: list[tuple[str, int, StrategyConfig]] = [
    ("tower", 2, DataParallel()),
    ("residual", 3, DataParallel()),
    ("tower", 4, OneWeirdTrick(scheme="b")),
    ("tower", 3, OneWeirdTrick(scheme="b", update="pass")),
    ("tower", 3, OneWeirdTrick(scheme="c", update="pass")),
]


@pytest.mark.parametrize("limit", [LIMIT, 25 << 20])
@pytest.mark.parametrize(("model", "count", "strategy"), NAMED)
def test_named_strategies(
    workers: Workers, model: str, count: int, strategy: StrategyConfig, limit: int
) -> None:
    plan = build_plan(graph_of(model), count, strategy)
    setup = Setup(collectives=True, collective_bytes=limit)
    found = workers.run(count, compare, model, str(plan), 5 * plan.micro_batches, setup)[0]
    assert found.collective == {tuple(range(count))} and not found.in_levels
    assert found.difference.ok, found.difference


@pytest.mark.parametrize("name", WRITTEN)
def test_written_plans(workers: Workers, name: str) -> None:
    """They sum over many subsets of the workers, and shards of uneven and of small tensors."""
    model, batch_size, text = WRITTEN[name]
    plan = read_plan(text, graph_of(model))
    found = workers.run(plan.workers, compare, model, str(plan), batch_size, SMALL)[0]
    assert found.difference.ok, found.difference


@pytest.mark.parametrize("limit", [LIMIT, 25 << 20])
def test_late_collectives_change_nothing(workers: Workers, limit: int) -> None:
    plan = str(build_plan(graph_of("tower"), 3, OneWeirdTrick(scheme="c", update="pass")))
    setup = Setup(collectives=True, collective_bytes=limit, chaos=LATE)
    found = workers.run(3, compare, "tower", plan, 15, setup)[0]
    assert found.difference.ok, found.difference


@pytest.mark.parametrize("missing", ["finish_sync", "finish_gather"])
def test_a_missing_wait_shows(workers: Workers, missing: str) -> None:
    plan = str(build_plan(graph_of("tower"), 2, DataParallel()))
    setup = replace(SMALL, chaos=LATE, missing=(CollectiveBucket, missing))
    try:
        found = workers.run(2, compare, "tower", plan, 9, setup, timeout=120.0)[0]
    except WorkerError as error:
        assert "never waited for" in str(error)
    else:
        assert not found.difference.ok


def test_hosts_make_no_difference(workers: Workers) -> None:
    plan = str(build_plan(graph_of("tower"), 4, DataParallel()))
    found = workers.run(4, compare, "tower", plan, 20, replace(SMALL, hosts=(0, 0, 1, 1)))[0]
    assert found.collective == {(0, 1, 2, 3)} and not found.in_levels
    assert found.difference.ok, found.difference


def test_the_program_knows_the_bytes(workers: Workers) -> None:
    plan = str(build_plan(graph_of("tower"), 3, DataParallel()))
    for sent, expected in workers.run(3, sent_bytes, "tower", plan, 12, Setup(collectives=True)):
        assert sent == expected > 0


@needs_two_gpus
@pytest.mark.parametrize("strategy", [DataParallel(), OneWeirdTrick(scheme="c", update="pass")])
def test_over_nccl(strategy: StrategyConfig) -> None:
    """With updates on a side stream."""
    plan = build_plan(graph_of("tower"), 2, strategy)
    workers = Workers()  # those of other tests are in a group of gloo's
    try:
        batch_size = 5 * plan.micro_batches
        found = workers.run(2, compare, "tower", str(plan), batch_size, replace(SMALL, device="cuda"))[0]
    finally:
        workers.stop()
    assert found.difference.ok, found.difference


def compare_beside(plan: str, batch_size: int, late: bool, joins: bool, chaos: Chaos | None) -> Difference:
    """Compare with updates on an imitated side stream; `joins`: whether the compute stream waits for it."""
    side = AsLateAsPossible() if late else AtOnce()
    finish_gather = CollectiveBucket.finish_gather

    def joined(bucket: CollectiveBucket, transport: Transport) -> None:
        if isinstance(side, AsLateAsPossible) and joins:
            side.finish()
        finish_gather(bucket, transport)

    with (
        patch("parallel.runtime.execution.parameters.open_side_stream", lambda _: side),
        patch.object(CollectiveBucket, "finish_gather", joined),
    ):
        difference = compare("tower", plan, batch_size, replace(SMALL, chaos=chaos)).difference
    assert not isinstance(side, AsLateAsPossible) or side.started > STEPS
    return difference


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("chaos", [None, Chaos(seed=5, max_delay_s=0.001)])
@pytest.mark.parametrize(
    ("count", "strategy"),
    [(2, DataParallel()), (3, OneWeirdTrick(scheme="c", update="pass")), (3, OneWeirdTrick(scheme="b"))],
)
def test_updates_beside_the_compute_stream_change_nothing(
    workers: Workers, count: int, strategy: StrategyConfig, chaos: Chaos | None, late: bool
) -> None:
    plan = build_plan(graph_of("tower"), count, strategy)
    difference = workers.run(count, compare_beside, str(plan), 5 * plan.micro_batches, late, True, chaos)[0]
    assert difference.ok, difference


def test_a_compute_stream_that_does_not_wait_shows(workers: Workers) -> None:
    plan = build_plan(graph_of("tower"), 2, DataParallel())
    difference = workers.run(2, compare_beside, str(plan), 5, True, False, None)[0]
    assert not difference.ok


def trained(world: World, side: AtOnce | AsLateAsPossible | None) -> tuple[list[Tensor], list[Tensor]]:
    """Return this worker's weights after some steps, and the momentum after it was forgotten."""
    network, shape = build("tower")
    graph = trace(network, shape)
    plan = build_plan(graph, world.size, DataParallel())
    program = lower(graph, plan, 9, collectives=True)

    def finish_gather(
        bucket: CollectiveBucket, transport: Transport, finish: Any = CollectiveBucket.finish_gather
    ) -> None:
        if isinstance(side, AsLateAsPossible):
            side.finish()
        finish(bucket, transport)

    with (
        patch("parallel.runtime.execution.parameters.open_side_stream", lambda _: side),
        patch.object(CollectiveBucket, "finish_gather", finish_gather),
    ):
        runtime = Runtime(program, network, world, EngineOptions(seed=0, momentum=0.9, weight_decay=0.01))
        for step in range(STEPS):
            generator = torch.Generator().manual_seed(step)
            images = torch.randn(len(runtime.image_positions), *shape, generator=generator)
            labels = torch.zeros(len(runtime.label_positions), dtype=torch.int64)
            runtime.train_step(images, labels, step=step, lr=0.1)
        runtime.forget_momentum()
        momentum = [piece.values.clone() for piece in runtime.pieces("momentum")]
        weights = [piece.values.clone() for piece in runtime.pieces("weights")]
        world.barrier()
        runtime.close()
    return weights, momentum


class Noted(AtOnce):
    """A side stream that knows when it has the floor."""

    def __init__(self) -> None:
        self.works = 0
        self.working = False

    def run(self, work: Callable[[], None]) -> None:
        self.works += 1
        self.working = True
        work()
        self.working = False


def phases_beside() -> tuple[int, list[Phase]]:
    """Return the works of the side stream, and the phases that began in one."""
    side, begun, enter = Noted(), list[Phase](), HostPhases.enter

    def noted(phases: HostPhases, phase: Phase) -> Phase:
        if side.working:
            begun.append(phase)
        return enter(phases, phase)

    with open_world(ClusterConfig(device="cpu")) as world, patch.object(HostPhases, "enter", noted):
        trained(world, side)
    return side.works, begun


def test_phases_are_those_of_the_compute_stream(workers: Workers) -> None:
    works, begun = workers.run(2, phases_beside)[0]
    assert works >= STEPS and begun == []


def same_bits() -> bool:
    with open_world(ClusterConfig(device="cpu")) as world:
        (plain, _), *others = (trained(world, side) for side in (None, AtOnce(), AsLateAsPossible()))
    for weights, momentum in others:
        assert not any(values.any() for values in momentum)
        assert all(torch.equal(one, other) for one, other in zip(plain, weights, strict=True))
    return len(plain) > 0


def test_updates_beside_the_compute_stream_give_the_same_bits(workers: Workers) -> None:
    assert all(workers.run(2, same_bits))


SAVED: list[tuple[int, StrategyConfig, bool]] = [
    (3, DataParallel(), True),
    (2, OneWeirdTrick(scheme="b"), True),
    (4, ModelParallel(scheme="tensor"), False),
]


def test_checkpoints_do_not_depend_on_collectives(workers: Workers, tmp_path: Path) -> None:
    """Each is loaded by all others, with and without padding."""
    plans = [str(build_plan(graph_of("tower"), count, strategy)) for count, strategy, _ in SAVED]
    for number, (count, _, collectives) in enumerate(SAVED):
        setup = Setup(collectives=collectives)
        ours = workers.run(count, save, "tower", plans[number], tmp_path / str(number), setup)[0]
        folder = tmp_path / str(number) / folder_name(SAVED_STEPS)
        for (other, _, loads), plan in zip(SAVED, plans, strict=True):
            setup = Setup(collectives=loads)
            (loaded,) = workers.run(other, load, "tower", plan, [folder], setup)[0]
            assert loaded.keys() == ours.keys()
            for kind, tensors in ours.items():
                assert all(torch.equal(loaded[kind][name], tensor) for name, tensor in tensors.items()), kind
