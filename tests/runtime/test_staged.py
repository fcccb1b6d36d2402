"""Plans whose messages are staged through host memory, as those of workers that share a GPU.

An imitated device (`tests.support.imitated_staging`) copies late, and refuses every tensor that reaches gloo or
shared memory without a copy to the host.
"""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch

from parallel.config import ClusterConfig, StrategyConfig
from parallel.graph import trace
from parallel.plans import Plan, read_plan
from parallel.program.lowering import lower
from parallel.runtime.communication.chaos import Chaos
from parallel.runtime.communication.opening import open_world
from parallel.runtime.communication.staged_transport import StagedTransport
from parallel.runtime.communication.staging import CudaStaging
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime
from parallel.strategies import DataParallel, ModelParallel, OneWeirdTrick, build_plan
from parallel.training.engines import own_memory
from parallel.verification.parity import Case, Difference, compare_cases
from tests.support.gpu import needs_gpu
from tests.support.imitated_staging import imitated_staging
from tests.support.named_plans import NAMED, WRITTEN, title
from tests.support.parity import compare
from tests.support.setups import Setup
from tests.support.small_models import build, graph_of
from tests.support.workers import Workers

STEPS = 2
LATE = Chaos(seed=3, max_delay_s=0.002)


def compare_staged(model: str, plan: str, batch_size: int, setup: Setup) -> tuple[Difference, int]:
    """Compare over staged messages; return also the bytes that this worker copied to the host."""
    with imitated_staging() as staging:
        return compare(model, plan, batch_size, setup, STEPS).difference, staging.bytes_to_host


def check(
    workers: Workers,
    model: str,
    plan: Plan,
    batch_size: int,
    shared_memory: bool = True,
    chaos: Chaos | None = None,
    hosts: tuple[int, ...] = (),
) -> None:
    setup = Setup(hosts=hosts, apart=bool(hosts), shared_memory=shared_memory, bucket_bytes=512, chaos=chaos)
    found = workers.run(plan.workers, compare_staged, model, str(plan), batch_size, setup)
    assert plan.workers == 1 or all(copied > 0 for _, copied in found)
    difference, _ = found[0]
    assert difference.ok, f"{difference} in {model}, batch {batch_size}, with\n{plan}"


def written(case: str) -> tuple[str, Plan, int]:
    model, batch_size, text = WRITTEN[case]
    return model, read_plan(text, graph_of(model)), batch_size


CHOSEN = {
    "data parallel": ("tower", build_plan(graph_of("tower"), 3, DataParallel()), 8),
    "pipeline": ("towers", build_plan(graph_of("towers"), 2, ModelParallel(micro_batches=4)), 8),
    "one weird trick, updates in passes": (
        "tower",
        build_plan(graph_of("tower"), 3, OneWeirdTrick(scheme="b", update="pass")),
        12,
    ),
    "space, then partial sums": written("space, then partial sums"),
    "batch norm in space and channels": written("batch norm in space and channels"),
}


@pytest.mark.parametrize("case", CHOSEN)
def test_plans_over_staged_messages(workers: Workers, case: str) -> None:
    check(workers, *CHOSEN[case])


@pytest.mark.parametrize("shared_memory", [True, False], ids=["memory", "network"])
def test_staged_messages_that_are_late(workers: Workers, shared_memory: bool) -> None:
    check(workers, *CHOSEN["space, then partial sums"], shared_memory, LATE)


def test_sums_in_levels_over_staged_messages(workers: Workers) -> None:
    check(workers, "tower", build_plan(graph_of("tower"), 4, DataParallel()), 8, hosts=(0, 0, 1, 1))


def sums(rank_and: float) -> tuple[list[float], list[float]]:
    """Return a tensor that `World.sum` has summed, and another that was summed behind the worker's back."""
    with imitated_staging(), open_world(ClusterConfig(device="cpu")) as world:
        at_once, late = torch.full((3,), world.rank + rank_and), torch.full((2,), 1.0)
        assert world.sum(at_once) is at_once
        world.start_sum(late)()
    return at_once.tolist(), late.tolist()


def test_sums_of_all_workers_are_staged(workers: Workers) -> None:
    assert workers.run(3, sums, 1.0) == [([6.0] * 3, [3.0] * 2)] * 3


def hold_weights() -> tuple[bool, bool, list[int]]:
    """Return whether the transport is staged, whether weights are common memory, and the neighbours."""
    network, shape = build("tower")
    graph = trace(network, shape)
    program = lower(graph, build_plan(graph, 2, DataParallel()), 4)
    with imitated_staging(), open_world(ClusterConfig(device="cpu")) as world:
        runtime = Runtime(program, network, world, EngineOptions(seed=0))
        common = any(held._common for held in runtime.parameters.buckets.values())
        with pytest.raises(RuntimeError, match="no common memory, so none can be announced"):
            runtime.transport.announce(("gather", 0), [1 - world.rank], torch.zeros(1))
        runtime.close()
    return isinstance(runtime.transport, StagedTransport), common, sorted(world.neighbours)


def test_weights_on_a_device_are_not_common_memory(workers: Workers) -> None:
    assert workers.run(2, hold_weights) == [(True, False, [1]), (True, False, [0])]


@pytest.mark.slow
@pytest.mark.parametrize("shared_memory", [True, False], ids=["memory", "network"])
@pytest.mark.parametrize(("n", "strategy"), NAMED, ids=[title(*case) for case in NAMED])
def test_named_strategies_over_staged_messages(
    workers: Workers, n: int, strategy: StrategyConfig, shared_memory: bool
) -> None:
    model = "towers" if strategy.name == "model_parallel" else "tower"
    plan = build_plan(graph_of(model), n, strategy)
    check(workers, model, plan, (5 if n != 3 else 4) * plan.micro_batches, shared_memory)


@pytest.mark.slow
@pytest.mark.parametrize("case", WRITTEN)
def test_written_plans_over_staged_messages(workers: Workers, case: str) -> None:
    model, plan, batch_size = written(case)
    check(workers, model, plan, batch_size, chaos=LATE)


def memory_of_each() -> tuple[int | None, int | None]:
    """Return a worker's share of a memory of 1,200 bytes, on a device that it shares and on one that it does
    not."""
    with patch("parallel.training.engines.available_memory", lambda device: 1200):
        with imitated_staging(), open_world(ClusterConfig(device="cpu")) as world:
            shared = own_memory(world)
        with open_world(ClusterConfig(device="cpu")) as world:
            return shared, own_memory(world)


def test_workers_that_share_a_device_divide_its_memory(workers: Workers) -> None:
    assert workers.run(3, memory_of_each) == [(400, 1200)] * 3


# On a GPU, which any number of workers share.

BUSY_CYCLES = 200_000_000
"""A tenth of a second, for which the device's stream is behind the host."""


def compare_on_gpu(model: str, text: str, batch_size: int, chaos: Chaos | None) -> tuple[Difference, str]:
    """Run one worker's side of a comparison on the GPU that all share; return also its device."""
    network, shape = build(model)
    case = Case(network, read_plan(text, trace(network, shape)), shape, batch_size, STEPS, seed=11)
    share = ClusterConfig(device="cuda", share_gpu=True)
    with open_world(share) as world:
        device = world.device.type
    return compare_cases([case], share, chaos)[0], device


@needs_gpu
@pytest.mark.parametrize("chaos", [None, LATE], ids=["prompt", "late"])
@pytest.mark.parametrize("case", CHOSEN)
def test_plans_on_a_shared_gpu(workers: Workers, case: str, chaos: Chaos | None) -> None:
    model, plan, batch_size = CHOSEN[case]
    found, device = workers.run(plan.workers, compare_on_gpu, model, str(plan), batch_size, chaos)[0]
    assert found.ok and device == "cuda", f"{found} in {model}, batch {batch_size}, with\n{plan}"


@needs_gpu
def test_copies_wait_for_the_stream() -> None:
    device = torch.device("cuda", 0)
    staging = CudaStaging(device)
    tensor = torch.zeros(1 << 20, device=device)
    torch.cuda._sleep(BUSY_CYCLES)
    tensor += 3.0
    (host,) = staging.to_host([tensor])
    assert host.is_pinned() and bool((host == 3.0).all())
    torch.cuda._sleep(BUSY_CYCLES)
    staging.to_device([(tensor, host)])
    host.fill_(7.0)  # what the next message would do
    assert bool((tensor == 3.0).all())
