"""Gradient sums in levels: exact on pretended hosts, in chaos mode, and across checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from parallel.checkpoints.checkpoint import folder_name
from parallel.config import ClusterConfig, StrategyConfig
from parallel.graph import trace
from parallel.plans import read_plan
from parallel.program.lowering import lower
from parallel.runtime.communication.chaos import Chaos
from parallel.runtime.communication.opening import open_world
from parallel.runtime.execution.bucket_in_levels import BucketInLevels
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime
from parallel.strategies import DataParallel, OneWeirdTrick, build_plan
from parallel.verification.parity import Case, Difference, compare_cases
from tests.runtime.test_checkpoints import STEPS as CHECKPOINT_STEPS
from tests.runtime.test_checkpoints import State, load, save
from tests.support.small_models import build, graph_of
from tests.support.workers import WorkerError, Workers

STEPS = 3
WHERE = "parallel.runtime.communication.hosts._kernel"


def on_host(hosts: tuple[int, ...]) -> Any:
    """Make workers of different pretended hosts share no memory."""
    return patch(WHERE, lambda: (str(hosts[int(os.environ["RANK"])]), ""))


def compare(
    plan: str, hosts: tuple[int, ...], memory: str, bucket_bytes: int, chaos: Chaos | None
) -> tuple[Difference, bool]:
    """Run one worker's side of a comparison; return also whether some bucket was summed in levels."""
    network, shape = build("tower")
    case = Case(network, read_plan(plan, trace(network, shape)), shape, 20, STEPS, seed=11, hosts=hosts)
    cluster = ClusterConfig(device="cpu", shared_memory=memory != "network")
    with patch("parallel.program.lowering.BUCKET_BYTES", bucket_bytes):
        assert case.program is not None
        levels = any(bucket.levels for bucket in case.program.buckets)
        if memory == "all":
            return compare_cases([case], cluster, chaos)[0], levels
        with on_host(hosts):
            return compare_cases([case], cluster, chaos)[0], levels


CASES: list[tuple[int, tuple[int, ...], StrategyConfig]] = [
    (4, (0, 0, 1, 1), DataParallel()),
    (3, (0, 0, 1), DataParallel()),
    (4, (0, 0, 0, 1), OneWeirdTrick(scheme="c", update="pass")),
    (4, (0, 0, 1, 1), OneWeirdTrick(scheme="b")),
]


@pytest.mark.parametrize(("count", "hosts", "strategy"), CASES)
@pytest.mark.parametrize("memory", ["hosts", "network"])
def test_sums_in_levels_are_exact(
    workers: Workers, count: int, hosts: tuple[int, ...], strategy: StrategyConfig, memory: str
) -> None:
    """With memory within the hosts, and with all messages over the network."""
    plan = str(build_plan(graph_of("tower"), count, strategy))
    difference, levels = workers.run(count, compare, plan, hosts, memory, 64, None)[0]
    assert levels and difference.ok, difference


@pytest.mark.parametrize("memory", ["hosts", "network", "all"])
@pytest.mark.parametrize(("count", "hosts"), [(4, (0, 0, 1, 1)), (3, (0, 0, 1))])
def test_late_messages_change_nothing(
    workers: Workers, count: int, hosts: tuple[int, ...], memory: str
) -> None:
    plan = str(build_plan(graph_of("tower"), count, DataParallel()))
    chaos = Chaos(seed=3, max_delay_s=0.003)
    difference, levels = workers.run(count, compare, plan, hosts, memory, 64, chaos)[0]
    assert levels and difference.ok, difference


def sent_bytes(plan: str, hosts: tuple[int, ...], shared_memory: bool) -> tuple[int, int]:
    """Return the bytes that this worker sent in a step, and those that the program says."""
    network, shape = build("tower")
    with patch("parallel.program.lowering.BUCKET_BYTES", 64):
        graph = trace(network, shape)
        program = lower(graph, read_plan(plan, graph), 12, hosts)
    with on_host(hosts), open_world(ClusterConfig(device="cpu", shared_memory=shared_memory)) as world:
        runtime = Runtime(program, network, world, EngineOptions(seed=0))
        images = torch.randn(len(runtime.image_positions), *shape)
        labels = torch.zeros(len(runtime.label_positions), dtype=torch.int64)
        runtime.train_step(images, labels, step=0, lr=0.1)
        runtime.complete()
        sent = runtime.bytes_sent
        world.barrier()
        runtime.close()
    return sent, program.bytes_sent(world.rank, 4)


@pytest.mark.parametrize("shared_memory", [True, False])
@pytest.mark.parametrize("hosts", [(0, 0, 1, 1), (0, 0, 0, 1)])
def test_the_program_knows_the_bytes_of_all_levels(
    workers: Workers, hosts: tuple[int, ...], shared_memory: bool
) -> None:
    plan = str(build_plan(graph_of("tower"), 4, DataParallel()))
    for sent, expected in workers.run(4, sent_bytes, plan, hosts, shared_memory):
        assert sent == expected > 0


def nothing(*_: object) -> None:
    """Wait for nothing."""


def compare_without(missing: str, plan: str, hosts: tuple[int, ...]) -> tuple[Difference, bool]:
    with (
        patch.object(BucketInLevels, missing, nothing),
        patch("parallel.runtime.failure.blame.BROKEN_S", 0.5),
    ):
        return compare(plan, hosts, "hosts", 64, Chaos(seed=3, max_delay_s=0.003))


@pytest.mark.parametrize("missing", ["continue_sync", "finish_sync", "finish_gather"])
def test_a_missing_wait_shows(workers: Workers, missing: str) -> None:
    plan = str(build_plan(graph_of("tower"), 4, DataParallel()))
    try:
        difference, _ = workers.run(4, compare_without, missing, plan, (0, 0, 1, 1), timeout=120.0)[0]
    except WorkerError as error:
        assert "never waited for" in str(error)
    else:
        assert not difference.ok


@contextmanager
def lowered_in_levels(hosts: tuple[int, ...]) -> Iterator[None]:
    """Lower the programs of `test_checkpoints` for workers of several hosts."""
    in_levels = partial(lower, hosts=hosts)
    with patch("parallel.program.lowering.BUCKET_BYTES", 64), on_host(hosts):
        with patch("tests.runtime.test_checkpoints.lower", in_levels):
            yield


def save_in_levels(plan: str, hosts: tuple[int, ...], folder: Path) -> State:
    with lowered_in_levels(hosts):
        return save("tower", plan, folder)


def load_in_levels(plan: str, hosts: tuple[int, ...], folder: Path) -> State:
    with lowered_in_levels(hosts):
        return load("tower", plan, [folder])[0]


LAYOUTS = [(4, (0, 0, 1, 1)), (3, (0, 0, 1)), (2, (0, 0)), (4, (0, 1, 1, 1))]


def test_checkpoints_of_any_hosts_load_on_any_others(workers: Workers, tmp_path: Path) -> None:
    plans = {n: str(build_plan(graph_of("tower"), n, DataParallel())) for n, _ in LAYOUTS}
    saved = []
    for number, (n, hosts) in enumerate(LAYOUTS):
        saved.append(workers.run(n, save_in_levels, plans[n], hosts, tmp_path / str(number))[0])
    for number, ours in enumerate(saved):
        folder = tmp_path / str(number) / folder_name(CHECKPOINT_STEPS)
        for n, hosts in LAYOUTS:
            loaded = workers.run(n, load_in_levels, plans[n], hosts, folder)[0]
            assert loaded.keys() == ours.keys()
            for kind, tensors in ours.items():
                assert all(torch.equal(loaded[kind][name], tensor) for name, tensor in tensors.items()), kind


def hosts_seen(hosts: tuple[int, ...], shared_memory: bool) -> tuple[int, ...]:
    with on_host(hosts), open_world(ClusterConfig(device="cpu", shared_memory=shared_memory)) as world:
        return world.host_of


@pytest.mark.parametrize("shared_memory", [True, False])
def test_workers_of_a_host(workers: Workers, shared_memory: bool) -> None:
    """They are on one host whether or not they use its memory."""
    assert workers.run(3, hosts_seen, (7, 7, 8), shared_memory) == [(0, 0, 1)] * 3
