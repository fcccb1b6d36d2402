"""Gradient sums in levels: exact on pretended hosts, in chaos mode, and across checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from parallel.checkpoints.checkpoint import folder_name
from parallel.config import ClusterConfig, StrategyConfig
from parallel.runtime.communication.chaos import Chaos
from parallel.runtime.communication.opening import open_world
from parallel.runtime.execution.bucket_in_levels import BucketInLevels
from parallel.strategies import DataParallel, OneWeirdTrick, build_plan
from tests.support.parity import compare, sent_bytes
from tests.support.saved_states import STEPS, load, save
from tests.support.setups import Setup, on_host
from tests.support.small_models import graph_of
from tests.support.workers import WorkerError, Workers

LATE = Chaos(seed=3, max_delay_s=0.003)


def setup_of(hosts: tuple[int, ...], memory: str = "hosts", chaos: Chaos | None = None) -> Setup:
    """Return a setup with small buckets, whose workers share memory within hosts, all of it or none."""
    return Setup(
        hosts=hosts, apart=memory != "all", shared_memory=memory != "network", bucket_bytes=64, chaos=chaos
    )


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
    found = workers.run(count, compare, "tower", plan, 20, setup_of(hosts, memory))[0]
    assert found.in_levels and found.difference.ok, found.difference


@pytest.mark.parametrize("memory", ["hosts", "network", "all"])
@pytest.mark.parametrize(("count", "hosts"), [(4, (0, 0, 1, 1)), (3, (0, 0, 1))])
def test_late_messages_change_nothing(
    workers: Workers, count: int, hosts: tuple[int, ...], memory: str
) -> None:
    plan = str(build_plan(graph_of("tower"), count, DataParallel()))
    found = workers.run(count, compare, "tower", plan, 20, setup_of(hosts, memory, LATE))[0]
    assert found.in_levels and found.difference.ok, found.difference


@pytest.mark.parametrize("shared_memory", [True, False])
@pytest.mark.parametrize("hosts", [(0, 0, 1, 1), (0, 0, 0, 1)])
def test_the_program_knows_the_bytes_of_all_levels(
    workers: Workers, hosts: tuple[int, ...], shared_memory: bool
) -> None:
    plan = str(build_plan(graph_of("tower"), 4, DataParallel()))
    setup = setup_of(hosts, "hosts" if shared_memory else "network")
    for sent, expected in workers.run(4, sent_bytes, "tower", plan, 12, setup):
        assert sent == expected > 0


@pytest.mark.parametrize("missing", ["continue_sync", "finish_sync", "finish_gather"])
def test_a_missing_wait_shows(workers: Workers, missing: str) -> None:
    plan = str(build_plan(graph_of("tower"), 4, DataParallel()))
    setup = replace(setup_of((0, 0, 1, 1), chaos=LATE), missing=(BucketInLevels, missing))
    try:
        found = workers.run(4, compare, "tower", plan, 20, setup, timeout=120.0)[0]
    except WorkerError as error:
        assert "never waited for" in str(error)
    else:
        assert not found.difference.ok


LAYOUTS = [(4, (0, 0, 1, 1)), (3, (0, 0, 1)), (2, (0, 0)), (4, (0, 1, 1, 1))]


def test_checkpoints_of_any_hosts_load_on_any_others(workers: Workers, tmp_path: Path) -> None:
    plans = {n: str(build_plan(graph_of("tower"), n, DataParallel())) for n, _ in LAYOUTS}
    saved = []
    for number, (n, hosts) in enumerate(LAYOUTS):
        folder = tmp_path / str(number)
        saved.append(workers.run(n, save, "tower", plans[n], folder, setup_of(hosts))[0])
    for number, ours in enumerate(saved):
        folder = tmp_path / str(number) / folder_name(STEPS)
        for n, hosts in LAYOUTS:
            (loaded,) = workers.run(n, load, "tower", plans[n], [folder], setup_of(hosts))[0]
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
