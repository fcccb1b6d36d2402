"""Every valid plan trains and evaluates exactly as plain single-process PyTorch, in real processes.

The random plans are the same in every run. The environment variable PARITY_PLANS sets their number:
30 by default, 200 for a long run.
"""

from __future__ import annotations

import os
import sys
import time
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

from parallel.config import ClusterConfig, StrategyConfig
from parallel.data.random_batch import random_batch
from parallel.graph import trace
from parallel.plans import Plan, read_plan
from parallel.program.lowering import BUCKET_BYTES, lower
from parallel.runtime.communication.chaos import Chaos
from parallel.runtime.communication.opening import open_world
from parallel.runtime.communication.spawn import spawn_workers
from parallel.runtime.execution.gathered import gathered
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime
from parallel.strategies import DataParallel, ModelParallel, OneWeirdTrick, build_plan
from tests.support.named_plans import NAMED, WRITTEN, title
from tests.support.parity import compare
from tests.support.setups import Setup
from tests.support.small_models import CLASSES, MODELS, build, graph_of, plans
from tests.support.workers import WorkerError, Workers

DRAWN = int(os.environ.get("PARITY_PLANS", "30"))
STEPS = 3


def check(
    workers: Workers,
    model: str,
    plan: Plan,
    batch_size: int,
    bucket_bytes: int = BUCKET_BYTES,
    shared_memory: bool = True,
    chaos: Chaos | None = None,
) -> None:
    setup = Setup(bucket_bytes=bucket_bytes, shared_memory=shared_memory, chaos=chaos)
    difference = workers.run(plan.workers, compare, model, str(plan), batch_size, setup)[0].difference
    assert difference.ok, f"{difference} in {model}, batch {batch_size}, with\n{plan}"


@pytest.mark.parametrize(("n", "strategy"), NAMED, ids=[title(*case) for case in NAMED])
def test_named_strategies(workers: Workers, n: int, strategy: StrategyConfig) -> None:
    model = "towers" if strategy.name == "model_parallel" else "tower"
    plan = build_plan(graph_of(model), n, strategy)
    samples = 5 if n != 3 else 4  # per micro-batch: does not divide evenly
    check(workers, model, plan, samples * plan.micro_batches)


@pytest.mark.parametrize("case", WRITTEN)
def test_written_plans(workers: Workers, case: str) -> None:
    model, batch_size, text = WRITTEN[case]
    check(workers, model, read_plan(text, graph_of(model)), batch_size)


@pytest.mark.parametrize("model", MODELS)
def test_plans_drawn_at_random(workers: Workers, model: str) -> None:
    graph = graph_of(model)

    @seed(2014)
    @settings(
        max_examples=-(-DRAWN // len(MODELS)),
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(plans(graph))
    def every(drawn: tuple[Plan, int]) -> None:
        # So that small models also have several buckets in a segment.
        check(workers, model, *drawn, bucket_bytes=512)

    every()


LATE = {
    "pipeline": (4, ModelParallel(micro_batches=6)),
    "passes that update": (3, OneWeirdTrick(scheme="b", update="pass")),
    "data parallel": (4, DataParallel()),
    "space, then partial sums": None,
    "batch norm in space and channels": None,
    "branches of a pass": None,
}


@pytest.mark.parametrize("case", LATE)
@pytest.mark.parametrize("shared_memory", [True, False], ids=["memory", "network"])
def test_plans_whose_messages_are_late(workers: Workers, case: str, shared_memory: bool) -> None:
    named = LATE[case]
    if named is None:
        model, batch_size, text = WRITTEN[case]
        plan = read_plan(text, graph_of(model))
    else:
        model, plan = "tower", build_plan(graph_of("tower"), *named)
        batch_size = 4 * plan.micro_batches
    check(workers, model, plan, batch_size, 512, shared_memory, Chaos(seed=5, max_delay_s=0.002))


def observe(model: str, text: str, batch_size: int, shared_memory: bool) -> dict[str, list[int]]:
    """Return one worker's neighbours, its measured bytes per step, and the program's."""
    network, shape = build(model)
    graph = trace(network, shape)
    program = lower(graph, read_plan(text, graph), batch_size)
    with open_world(ClusterConfig(device="cpu", shared_memory=shared_memory)) as world:
        runtime = Runtime(program, network, world, EngineOptions(seed=0, precision="fp64", momentum=0.9))
        images, labels = random_batch(batch_size, shape, CLASSES, seed=0, dtype=torch.float64)
        runtime.train_step(images[runtime.image_positions], labels[runtime.label_positions], step=0, lr=0.1)
        sent = runtime.bytes_sent
        runtime.forget_momentum()
        forgotten = gathered(runtime, "buffers", world)
    initial = dict(network.double().named_buffers())
    assert all(torch.equal(tensor, initial[name]) for name, tensor in forgotten.items())
    return {
        "neighbours": sorted(world.neighbours),
        "bytes": [sent, program.bytes_sent(world.rank, itemsize=8)],
    }


@pytest.mark.parametrize(
    ("n", "strategy"),
    [
        (2, DataParallel()),
        (3, ModelParallel(scheme="tensor")),
        (4, ModelParallel(micro_batches=3)),
        (3, OneWeirdTrick(scheme="a")),
        (4, OneWeirdTrick(scheme="b", update="pass")),
        (2, OneWeirdTrick(scheme="c", update="pass")),
    ],
    ids=lambda value: title(0, value) if isinstance(value, StrategyConfig) else str(value),
)
@pytest.mark.parametrize("shared_memory", [True, False], ids=["memory", "network"])
def test_bytes_sent(workers: Workers, n: int, strategy: StrategyConfig, shared_memory: bool) -> None:
    check_observed(workers, "tower", build_plan(graph_of("tower"), n, strategy), 24, shared_memory)


@pytest.mark.parametrize("case", WRITTEN)
def test_bytes_sent_by_written_plans(workers: Workers, case: str) -> None:
    model, batch_size, text = WRITTEN[case]
    check_observed(workers, model, read_plan(text, graph_of(model)), batch_size, shared_memory=False)


def check_observed(workers: Workers, model: str, plan: Plan, batch_size: int, shared_memory: bool) -> None:
    seen = workers.run(plan.workers, observe, model, str(plan), batch_size, shared_memory)
    for rank, worker in enumerate(seen):
        others = [other for other in range(plan.workers) if other != rank]
        assert worker["neighbours"] == (others if shared_memory and sys.platform == "linux" else [])
        sent, expected = worker["bytes"]
        assert sent == expected


# What happens when a worker fails.


def fail_alone(rank: int) -> None:
    """Fail on one worker, for which all others wait."""
    with open_world(ClusterConfig(device="cpu")) as world:
        if world.rank == rank:
            raise ArithmeticError(f"worker {rank} cannot go on")
        world.barrier()


def echo(value: object) -> tuple[str, str, object]:
    return os.environ["RANK"], os.environ["WORLD_SIZE"], value


def test_spawned_workers_return_their_results_by_rank() -> None:
    assert spawn_workers(echo, 2, "x") == [("0", "2", "x"), ("1", "2", "x")]


def test_a_worker_that_raises_ends_all_with_its_traceback() -> None:
    """The server that workers are forked from is there already, started by the test above."""
    begin = time.monotonic()
    with (
        patch("parallel.runtime.communication.spawn.GRACE_S", 0.5),
        pytest.raises(Exception, match=r"(?s)fail_alone.*ArithmeticError: worker 1 cannot go on") as raised,
    ):
        spawn_workers(fail_alone, 3, 1)
    assert type(raised.value).__name__ == "ProcessRaisedException"
    assert time.monotonic() - begin < 300  # well below the ten minutes for which the others would have waited


def test_the_test_s_own_workers_report_what_they_raise_and_start_again(workers: Workers) -> None:
    with pytest.raises(WorkerError, match=r"(?s)worker 0:.*ArithmeticError"):
        workers.run(2, fail_alone, 0)
    assert workers.run(2, echo, 1) == [("0", "2", 1), ("1", "2", 1)]


def test_a_world_of_another_size_than_the_plan_s_is_refused() -> None:
    network, shape = build("tower")
    graph = trace(network, shape)
    plan = build_plan(graph, 2, DataParallel())
    with (
        open_world(ClusterConfig(device="cpu")) as world,
        pytest.raises(ValueError, match="^workers=1 does not fit the plan, which is for 2$"),
    ):
        Runtime(lower(graph, plan, 4), network, world, EngineOptions(seed=0))
