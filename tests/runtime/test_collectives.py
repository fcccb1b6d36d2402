"""Gradient sums and gathers by the backend's collectives, as over NCCL, here over gloo's: exact for every plan."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
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
from parallel.verification.parity import Case, Difference, compare_cases
from tests.runtime.test_checkpoints import STEPS as CHECKPOINT_STEPS
from tests.runtime.test_checkpoints import State, load, save
from tests.runtime.test_parity import WRITTEN
from tests.support.gpu import needs_two_gpus
from tests.support.small_models import build, graph_of
from tests.support.workers import WorkerError, Workers

STEPS = 3
LIMIT = 64
"""Bytes of a full bucket: most parameters have a bucket of their own, and small ones share some."""


def compare(
    model: str,
    plan: str,
    batch_size: int,
    limit: int,
    chaos: Chaos | None,
    hosts: tuple[int, ...] = (),
    device: str = "cpu",
) -> tuple[Difference, set[tuple[int, ...]]]:
    """Run one worker's side of a comparison; return also the sets of workers of its collectives."""
    network, shape = build(model)
    plan_of = read_plan(plan, trace(network, shape))
    case = Case(network, plan_of, shape, batch_size, STEPS, seed=11, hosts=hosts, collectives=True)
    with patch("parallel.program.lowering.COLLECTIVE_BYTES", limit):
        assert case.program is not None
        sets = {bucket.workers for bucket in case.program.buckets if bucket.collective}
        assert not any(bucket.levels for bucket in case.program.buckets)
        return compare_cases([case], ClusterConfig(device=device), chaos)[0], sets


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
    difference, sets = workers.run(count, compare, model, str(plan), 5 * plan.micro_batches, limit, None)[0]
    assert sets == {tuple(range(count))} and difference.ok, difference


@pytest.mark.parametrize("name", WRITTEN)
def test_written_plans(workers: Workers, name: str) -> None:
    """They sum over many subsets of the workers, and shards of uneven and of small tensors."""
    model, batch_size, text = WRITTEN[name]
    plan = read_plan(text, graph_of(model))
    difference, _ = workers.run(plan.workers, compare, model, str(plan), batch_size, LIMIT, None)[0]
    assert difference.ok, difference


@pytest.mark.parametrize("limit", [LIMIT, 25 << 20])
def test_late_collectives_change_nothing(workers: Workers, limit: int) -> None:
    plan = str(build_plan(graph_of("tower"), 3, OneWeirdTrick(scheme="c", update="pass")))
    chaos = Chaos(seed=3, max_delay_s=0.003)
    difference, _ = workers.run(3, compare, "tower", plan, 15, limit, chaos)[0]
    assert difference.ok, difference


def nothing(*_: object) -> None:
    """Wait for nothing."""


def compare_without(missing: str, plan: str) -> Difference:
    with (
        patch.object(CollectiveBucket, missing, nothing),
        patch("parallel.runtime.failure.blame.BROKEN_S", 0.5),
    ):
        return compare("tower", plan, 9, LIMIT, Chaos(seed=3, max_delay_s=0.003))[0]


@pytest.mark.parametrize("missing", ["finish_sync", "finish_gather"])
def test_a_missing_wait_shows(workers: Workers, missing: str) -> None:
    plan = str(build_plan(graph_of("tower"), 2, DataParallel()))
    try:
        difference = workers.run(2, compare_without, missing, plan, timeout=120.0)[0]
    except WorkerError as error:
        assert "never waited for" in str(error)
    else:
        assert not difference.ok


def test_hosts_make_no_difference(workers: Workers) -> None:
    plan = str(build_plan(graph_of("tower"), 4, DataParallel()))
    difference, sets = workers.run(4, compare, "tower", plan, 20, LIMIT, None, (0, 0, 1, 1))[0]
    assert sets == {(0, 1, 2, 3)} and difference.ok, difference


def sent_bytes(plan: str) -> tuple[int, int]:
    """Return the bytes that this worker sent in a step, and those that the program says."""
    network, shape = build("tower")
    graph = trace(network, shape)
    program = lower(graph, read_plan(plan, graph), 12, collectives=True)
    with open_world(ClusterConfig(device="cpu")) as world:
        runtime = Runtime(program, network, world, EngineOptions(seed=0))
        images = torch.randn(len(runtime.image_positions), *shape)
        labels = torch.zeros(len(runtime.label_positions), dtype=torch.int64)
        runtime.train_step(images, labels, step=0, lr=0.1)
        runtime.complete()
        sent = runtime.bytes_sent
        world.barrier()
        runtime.close()
    return sent, program.bytes_sent(world.rank, 4)


def test_the_program_knows_the_bytes(workers: Workers) -> None:
    for sent, expected in workers.run(3, sent_bytes, str(build_plan(graph_of("tower"), 3, DataParallel()))):
        assert sent == expected > 0


@needs_two_gpus
@pytest.mark.parametrize("strategy", [DataParallel(), OneWeirdTrick(scheme="c", update="pass")])
def test_over_nccl(strategy: StrategyConfig) -> None:
    """With updates on a side stream."""
    plan = build_plan(graph_of("tower"), 2, strategy)
    workers = Workers()  # those of other tests are in a group of gloo's
    try:
        batch_size = 5 * plan.micro_batches
        results = workers.run(2, compare, "tower", str(plan), batch_size, LIMIT, None, (), "cuda")
    finally:
        workers.stop()
    assert results[0][0].ok, results[0][0]


class AtOnce:
    """A side stream that is always ahead of the compute stream."""

    def run(self, work: Callable[[], None]) -> None:
        work()


class AsLateAsPossible:
    """A side stream that is always behind: it works when the compute stream waits for its results.

    The compute stream is the host's thread, which runs what it is told at once. As a GPU, it keeps the
    order of the work.
    """

    def __init__(self) -> None:
        self.queue: deque[Callable[[], None]] = deque()
        self.started = 0

    def run(self, work: Callable[[], None]) -> None:
        self.queue.append(work)
        self.started += 1

    def finish(self) -> None:
        while self.queue:
            self.queue.popleft()()


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
        difference, _ = compare("tower", plan, batch_size, LIMIT, chaos)
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


@contextmanager
def lowered(collectives: bool) -> Iterator[None]:
    """Lower the programs of `test_checkpoints` with or without collectives."""
    with patch("tests.runtime.test_checkpoints.lower", partial(lower, collectives=collectives)):
        yield


def save_with(collectives: bool, plan: str, folder: Path) -> State:
    with lowered(collectives):
        return save("tower", plan, folder)


def load_with(collectives: bool, plan: str, folder: Path) -> State:
    with lowered(collectives):
        return load("tower", plan, [folder])[0]


SAVED: list[tuple[int, StrategyConfig, bool]] = [
    (3, DataParallel(), True),
    (2, OneWeirdTrick(scheme="b"), True),
    (4, ModelParallel(scheme="tensor"), False),
]


def test_checkpoints_do_not_depend_on_collectives(workers: Workers, tmp_path: Path) -> None:
    """Each is loaded by all others, with and without padding."""
    plans = [str(build_plan(graph_of("tower"), count, strategy)) for count, strategy, _ in SAVED]
    for number, (count, _, collectives) in enumerate(SAVED):
        ours = workers.run(count, save_with, collectives, plans[number], tmp_path / str(number))[0]
        folder = tmp_path / str(number) / folder_name(CHECKPOINT_STEPS)
        for (other, _, loads), plan in zip(SAVED, plans, strict=True):
            loaded = workers.run(other, load_with, loads, plan, folder)[0]
            assert loaded.keys() == ours.keys()
            for kind, tensors in ours.items():
                assert all(torch.equal(loaded[kind][name], tensor) for name, tensor in tensors.items()), kind
