"""Plans are exact over a transport with NCCL's rules, and programs in a wrong order do not run over it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from parallel.config import ClusterConfig, StrategyConfig
from parallel.graph import trace
from parallel.plans import Plan, read_plan
from parallel.program import Program, Update
from parallel.program.lowering import lower
from parallel.runtime.communication import opening
from parallel.runtime.communication.chaos import Chaos
from parallel.runtime.communication.open_transport import open_transport
from parallel.runtime.communication.opening import open_world
from parallel.runtime.communication.strict_transport import StrictTransport
from parallel.runtime.communication.transport import Receive, Transport
from parallel.runtime.communication.world import World
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime
from parallel.runtime.instrumentation.clock import Clock
from parallel.strategies import DataParallel, ModelParallel, OneWeirdTrick, build_plan
from tests.support.named_plans import NAMED, WRITTEN, title
from tests.support.parity import compare
from tests.support.setups import Setup
from tests.support.small_models import build, graph_of
from tests.support.workers import WorkerError, Workers

CPU = ClusterConfig(device="cpu")
QUICK = ClusterConfig(device="cpu", timeout_s=2.0)


Hosts = tuple[int, ...] | None
"""Host of every worker, whose messages sum the gradients. None: collectives sum them, as in NCCL's runs."""


def check(workers: Workers, model: str, plan: Plan, batch_size: int, hosts: Hosts = None) -> None:
    setup = Setup(
        hosts=hosts or (), collectives=hosts is None, bucket_bytes=512, collective_bytes=512, strict=True
    )
    difference = workers.run(plan.workers, compare, model, str(plan), batch_size, setup, 2)[0].difference
    assert difference.ok, f"{difference} in {model}, batch {batch_size}, with\n{plan}"


def check_named(workers: Workers, n: int, strategy: StrategyConfig, hosts: Hosts = None) -> None:
    model = "towers" if strategy.name == "model_parallel" else "tower"
    plan = build_plan(graph_of(model), n, strategy)
    check(workers, model, plan, 4 * plan.micro_batches, hosts)


def check_written(workers: Workers, name: str) -> None:
    model, batch_size, text = WRITTEN[name]
    check(workers, model, read_plan(text, graph_of(model)), batch_size)


FEW: list[tuple[int, StrategyConfig, Hosts]] = [
    (3, DataParallel(), None),
    (4, DataParallel(), (0, 0, 1, 1)),
    (3, ModelParallel(micro_batches=4), None),
    (3, ModelParallel(scheme="tensor"), ()),
    (4, OneWeirdTrick(scheme="c", update="pass"), None),
]


@pytest.mark.parametrize(("n", "strategy", "hosts"), FEW, ids=[f"{title(n, s)} {h}" for n, s, h in FEW])
def test_strategies_are_exact(workers: Workers, n: int, strategy: StrategyConfig, hosts: Hosts) -> None:
    check_named(workers, n, strategy, hosts)


@pytest.mark.parametrize(
    "name", ["branches in a pipeline", "batch norm in space and channels", "weights in every dim"]
)
def test_written_plans_are_exact(workers: Workers, name: str) -> None:
    check_written(workers, name)


@pytest.mark.slow
def test_all_plans_are_exact(workers: Workers) -> None:
    for n, strategy in NAMED:
        if n > 1:
            check_named(workers, n, strategy)
            check_named(workers, n, strategy, (0, 0, 1, 1)[:n])
    for name in WRITTEN:
        check_written(workers, name)


# Wrong programs.


@contextlib.contextmanager
def opened(strict: bool) -> Iterator[tuple[World, Transport]]:
    """Open a world without shared memory, whose waits are limited to two seconds."""
    with open_world(replace(QUICK, shared_memory=False), strict=strict) as world:
        world.started()
        transport = open_transport(world, Clock(world.device))
        assert isinstance(transport, StrictTransport) == strict
        yield world, transport
        transport.close()


def send_then_receive(strict: bool) -> list[float]:
    """Send to the other worker in one group, then receive from it in the next, on both workers."""
    with opened(strict) as (world, transport):
        peer = 1 - world.rank
        sent = transport.start(("from", world.rank), [(peer, torch.ones(3))], ())
        received = transport.start(("from", peer), (), [Receive(peer, (3,), torch.float32)])
        (tensor,) = transport.wait(received)
        transport.wait(sent)
        return tensor.tolist()


def test_sends_that_wait_for_each_other_deadlock(workers: Workers) -> None:
    """gloo buffers them, so they pass with it."""
    assert workers.run(2, send_then_receive, False) == [[1.0] * 3] * 2
    with pytest.raises(
        WorkerError, match="all workers wait for each other, for longer than cluster.timeout_s=2"
    ):
        workers.run(2, send_then_receive, True, timeout=60.0)


def barrier_before_receive(strict: bool) -> None:
    """Worker 0 sends, then enters a barrier; worker 1 receives after it."""
    with opened(strict) as (world, transport):
        if world.rank == 0:
            message = transport.start(("message", "late"), [(1, torch.ones(3))], ())
            world.barrier()
        else:
            world.barrier()
            message = transport.start(("message", "late"), (), [Receive(0, (3,), torch.float32)])
        transport.wait(message)


def test_a_collective_waits_for_the_messages_before_it(workers: Workers) -> None:
    workers.run(2, barrier_before_receive, False)
    with pytest.raises(WorkerError, match="all workers wait for each other"):
        workers.run(2, barrier_before_receive, True, timeout=60.0)


def with_swapped_updates(program: Program, worker: int) -> Program:
    """Swap the last two updates of a worker."""
    *steps, before, last = program.steps[worker]
    assert isinstance(before, Update) and isinstance(last, Update)
    swapped = (*steps, last, before)
    return replace(program, steps=(*program.steps[:worker], swapped, *program.steps[worker + 1 :]))


def train_swapped(plan: str, collectives: bool) -> None:
    network, shape = build("tower")
    graph = trace(network, shape)
    with (
        patch("parallel.program.lowering.BUCKET_BYTES", 512),
        patch("parallel.program.lowering.COLLECTIVE_BYTES", 512),
    ):
        lowered = lower(graph, read_plan(plan, graph), 4, collectives=collectives)
        program = with_swapped_updates(lowered, 1)
    with open_world(QUICK, strict=True) as world:
        runtime = Runtime(program, network, world, EngineOptions(seed=0))
        world.started()
        images = torch.zeros(len(runtime.image_positions), *shape)
        labels = torch.zeros(len(runtime.label_positions), dtype=torch.int64)
        runtime.train_step(images, labels, step=0, lr=0.1)
        runtime.close()


def test_messages_that_meet_another_one_are_named(workers: Workers) -> None:
    plan = build_plan(graph_of("tower"), 2, DataParallel())
    sentence = (
        r"WrongOrder: sends 'gather \d: \d+ elements of torch.float32' to worker \d, "
        r"which is to receive 'gather \d: \d+ elements"
    )
    with pytest.raises(WorkerError, match=sentence):
        workers.run(2, train_swapped, str(plan), False, timeout=60.0)


def test_collectives_of_swapped_updates_are_named(workers: Workers) -> None:
    plan = build_plan(graph_of("tower"), 2, DataParallel())
    sentence = (
        r"WrongOrder: calls 'all_gather gather \d: \d+ elements of torch.float32 among workers 0, 1', "
        r"and worker \d calls 'all_gather gather \d: \d+ elements"
    )
    with pytest.raises(WorkerError, match=sentence):
        workers.run(2, train_swapped, str(plan), True, timeout=60.0)


def gather_differently(change: str) -> None:
    """Gather a tensor over both or all workers; worker 1 calls something else."""
    sets = [(0, 1), (0, 1, 2)]
    with opened(True) as (world, transport):
        world.open_groups(sets)
        changed = world.rank == 1
        elements = 12 if changed and change == "elements" else 6
        dtype = torch.bfloat16 if changed and change == "dtype" else torch.float32
        members = sets[0] if changed and change == "members" else sets[1]
        key = "gather", 8 if changed and change == "key" else 7
        collect = transport.reduce_scatter if changed and change == "kind" else transport.all_gather
        transport.wait(collect(key, members, torch.ones(elements, dtype=dtype)))


CALLED = "all_gather gather 7: 6 elements of torch.float32 among workers 0, 1, 2"


@pytest.mark.parametrize(
    ("change", "called"),
    [
        ("kind", CALLED.replace("all_gather", "reduce_scatter")),
        ("key", CALLED.replace("7", "8")),
        ("elements", CALLED.replace("6", "12")),
        ("dtype", CALLED.replace("float32", "bfloat16")),
        ("members", CALLED.removesuffix(", 2")),
    ],
)
def test_collectives_that_meet_another_one_are_named(workers: Workers, change: str, called: str) -> None:
    ours, theirs = f"'{CALLED}'", f"'{called}'"
    sentence = (
        rf"WrongOrder: calls (?:{ours}, and worker 1 calls {theirs}|{theirs}, and worker [02] calls {ours})"
    )
    with pytest.raises(WorkerError, match=sentence):
        workers.run(3, gather_differently, change, timeout=60.0)


def test_collectives_that_agree_run(workers: Workers) -> None:
    workers.run(3, gather_differently, "nothing", timeout=60.0)


def early() -> tuple[list[float], list[float]]:
    """Return what a destination holds before the wait and after it."""
    with opened(True) as (world, transport):
        peer, place, sent = 1 - world.rank, torch.zeros(2), torch.ones(2)
        before = transport.start(("before",), [(peer, torch.ones(1))], [Receive(peer, (1,), torch.float32)])
        message = transport.start(("a",), [(peer, sent)], [Receive(peer, (2,), torch.float32, place)])
        seen = place.tolist()
        transport.wait(before)
        transport.wait(message)
        return seen, place.tolist()


def test_data_is_valid_only_after_the_wait(workers: Workers) -> None:
    for seen, after in workers.run(2, early):
        assert all(value != value for value in seen)
        assert after == [1.0, 1.0]


def test_strict_mode_has_no_chaos() -> None:
    with pytest.raises(ValueError, match=r"^chaos=Chaos\(.*\) must be None in strict mode$"):
        with open_world(CPU, Chaos(), strict=True):
            pass


@pytest.mark.parametrize(
    ("chaos", "strict", "rule"),
    [(Chaos(), False, "must be cpu in chaos mode, unless"), (None, True, "must be cpu in strict mode$")],
)
def test_other_devices_have_neither_chaos_nor_strict_mode(
    chaos: Chaos | None, strict: bool, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "choose_device", lambda cluster: torch.device("cuda", 0))
    with pytest.raises(ValueError, match=f"^cluster.device=cuda {rule}"):
        with open_world(ClusterConfig(device="cuda"), chaos, strict=strict):
            pass
