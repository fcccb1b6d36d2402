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
from parallel.strategies import DataParallel, ModelParallel, OneWeirdTrick, Single, build_plan
from parallel.verification.parity import Case, Difference, compare_cases
from tests.support.small_models import CLASSES, MODELS, build, graph_of, plans
from tests.support.workers import WorkerError, Workers

DRAWN = int(os.environ.get("PARITY_PLANS", "30"))
STEPS = 3


def compare(
    model: str, plan: str, batch_size: int, bucket_bytes: int, shared_memory: bool, chaos: Chaos | None
) -> Difference:
    """Run one worker's side of a comparison; the plan is passed as text."""
    network, shape = build(model)
    case = Case(network, read_plan(plan, trace(network, shape)), shape, batch_size, STEPS, seed=11)
    with patch("parallel.program.lowering.BUCKET_BYTES", bucket_bytes):
        return compare_cases([case], ClusterConfig(device="cpu", shared_memory=shared_memory), chaos)[0]


def check(
    workers: Workers,
    model: str,
    plan: Plan,
    batch_size: int,
    bucket_bytes: int = BUCKET_BYTES,
    shared_memory: bool = True,
    chaos: Chaos | None = None,
) -> None:
    difference = workers.run(
        plan.workers, compare, model, str(plan), batch_size, bucket_bytes, shared_memory, chaos
    )[0]
    assert difference.ok, f"{difference} in {model}, batch {batch_size}, with\n{plan}"


OWT_SCHEMES = (("a", "step"), ("b", "step"), ("b", "pass"), ("c", "step"), ("c", "pass"))
NAMED = [
    (1, Single()),
    (1, ModelParallel()),
    (1, OneWeirdTrick(scheme="c", update="pass")),
    *((n, DataParallel()) for n in (1, 2, 3, 4)),
    *((n, ModelParallel(scheme="tensor")) for n in (2, 3, 4)),
    (3, ModelParallel(scheme="tensor", micro_batches=2)),
    *(
        (n, ModelParallel(micro_batches=m, pipeline=pipeline))
        for n, m in ((2, 1), (2, 2), (2, 4), (3, 4), (4, 1), (4, 3), (4, 6))
        for pipeline in ("fill_drain", "1f1b")
    ),
    *((n, OneWeirdTrick(scheme=scheme, update=update)) for n in (2, 3, 4) for scheme, update in OWT_SCHEMES),
]


def title(n: int, s: StrategyConfig) -> str:
    return f"{n} {s.full_label(None)}"


@pytest.mark.parametrize(("n", "strategy"), NAMED, ids=[title(*case) for case in NAMED])
def test_named_strategies(workers: Workers, n: int, strategy: StrategyConfig) -> None:
    model = "towers" if strategy.name == "model_parallel" else "tower"
    plan = build_plan(graph_of(model), n, strategy)
    samples = 5 if n != 3 else 4  # per micro-batch: does not divide evenly
    check(workers, model, plan, samples * plan.micro_batches)


WRITTEN = {
    "the design's example": (
        "tower",
        7,
        """
        {workers: 4, micro_batches: 1, ops: {conv1: {n: 4, on: [0, 1, 2, 3]}, conv2: {h: 2, w: 2, on: [0, 2, 1, 3]},
         fc3: {c: 3, on: [0, 1, 2]}, fc5: {on: [0]}}}""",
    ),
    "space, then partial sums": (
        "towers",
        4,
        """
        {workers: 4, ops: {conv1: {h: 3, on: [3, 1, 0]}, norm1: {c: 2, w: 2, on: [2, 0, 3, 1]},
         conv2: {k: 2, h: 2, on: [1, 0, 2, 3]}, conv3: {c: 2, k: 2, on: [0, 1, 2, 3]}, fc4: {k: 4, on: [3, 2, 1, 0]},
         fc5: {c: 2, k: 2, on: [1, 3, 0, 2]}}}""",
    ),
    "every dim of a conv with groups": (
        "odd",
        4,
        """
        {workers: 4, ops: {conv1: {c: 4, on: [0, 1, 2, 3]}, pool1: {h: 4, on: [2, 0, 1, 3]},
         conv2: {n: 2, k: 2, on: [3, 0, 1, 2]}, flatten: {c: 3, on: [2, 0, 1]}, fc3: {k: 3, on: [0, 1, 3]}}}""",
    ),
    "weights in every dim": (
        "towers",
        9,
        """
        {workers: 4, ops: {conv1: {n: [3, 1], on: [1, 0]}, norm1: {c: [1, 2, 2], on: [0, 3, 1]},
         pool1: {h: [1, 2], on: [2, 1]}, conv2: {c: 2, k: [2, 1], on: [3, 0, 1, 2]}, conv3: {w: [1, 2], on: [0, 2]},
         fc4: {k: [1, 3], n: 2, on: [0, 1, 2, 3]}, fc5: {c: [3, 2], on: [2, 3]}}}""",
    ),
    "weights in a pipeline": (
        "tower",
        12,
        """
        {workers: 3, micro_batches: 3, ops: {conv1: {n: [3, 1], on: [0, 1]}, fc3: {c: [8, 3], on: [1, 2]}}}""",
    ),
    "batch norm over uneven samples": (
        "residual",
        7,
        """
        {workers: 3, ops: {conv1: {n: [4, 1, 1], on: [0, 1, 2]}, layer2.conv1: {h: [1, 2], on: [0, 1]},
         fc: {c: [1, 4], on: [2, 0]}}}""",
    ),
    "passes whose linear layers have weights": (
        "tower",
        12,
        """
        {workers: 2, scheme: b, micro_batches: 2, ops: {conv1: {n: 2, on: [0, 1]}, fc3: {c: [2, 1], on: [0, 1]}}}""",
    ),
    "a worker without work": ("tower", 5, "{workers: 3, ops: {conv1: {n: 2, on: [2, 0]}}}"),
    "a pipeline whose stages are data parallel": (
        "tower",
        12,
        """
        {workers: 4, micro_batches: 4, ops: {conv1: {n: 2, on: [0, 1]}, fc3: {n: 2, on: [2, 3]}}}""",
    ),
    "a pipeline that comes back": (
        "tower",
        12,
        """
        {workers: 2, micro_batches: 4, ops: {conv1: {on: [0]}, conv2: {on: [1]}, fc3: {on: [0]}, fc5: {on: [1]}}}""",
    ),
    "no weights on the first worker": (
        "weightless",
        6,
        """
        {workers: 3, micro_batches: 2, ops: {pool1: {on: [0]}, conv2: {k: 2, on: [1, 2]}, fc4: {on: [2]}}}""",
    ),
    "partial sums of which each worker then needs all": (
        "weightless",
        5,
        """
        {workers: 2, ops: {pool1: {n: 2, on: [0, 1]}, conv2: {k: 2, on: [0, 1]}, conv3: {c: 2, on: [0, 1]}}}""",
    ),
    "passes that no op is left for": (
        "tower",
        8,
        """
        {workers: 2, scheme: c, micro_batches: 2, update: pass, ops: {conv1: {n: 2, on: [0, 1]}}}""",
    ),
    "a single op on another worker": (
        "odd",
        6,
        """
        {workers: 2, micro_batches: 2, pipeline: fill_drain, ops: {conv1: {h: 2, on: [1, 0]}, drop1: {on: [1]},
         pool1: {w: 2, on: [0, 1]}, loss: {n: 2, on: [1, 0]}}}""",
    ),
    "only the loss elsewhere": (
        "towers",
        9,
        """
        {workers: 3, scheme: c, micro_batches: 3, update: pass,
         ops: {conv1: {n: 3, on: [1, 2, 0]}, loss: {on: [0]}}}""",
    ),
    "scheme b on some of the workers": (
        "tower",
        12,
        """
        {workers: 4, scheme: b, micro_batches: 3, update: pass, ops: {conv1: {n: 3, on: [3, 0, 2]},
         fc3: {c: 4, on: [0, 1, 2, 3]}, fc5: {n: 2, on: [1, 3]}}}""",
    ),
    "passes in a pipeline": (
        "towers",
        8,
        """
        {workers: 2, scheme: b, micro_batches: 2, update: pass,
         ops: {conv1: {n: 2, on: [0, 1]}, conv3: {on: [0]}, fc5: {on: [1]}}}""",
    ),
    "scheme c, then splits in space": (
        "towers",
        8,
        """
        {workers: 2, scheme: c, micro_batches: 2, update: step, ops: {conv1: {n: 2, on: [1, 0]},
         conv2: {h: 2, on: [0, 1]}, fc4: {c: 2, on: [1, 0]}}}""",
    ),
    "batch norm over samples": ("residual", 7, "{workers: 3, ops: {conv1: {n: 3, on: [0, 1, 2]}}}"),
    "batch norm of whole channels": (
        "residual",
        5,
        "{workers: 2, ops: {conv1: {c: 2, on: [1, 0]}, layer2.conv2: {on: [0]}, bn3: {c: [2, 1], on: [0, 1]}}}",
    ),
    "batch norm in space and channels": (
        "residual",
        4,
        """
        {workers: 4, ops: {conv1: {h: 2, w: 2, on: [0, 1, 2, 3]}, layer1.conv1: {c: 2, h: 2, on: [3, 1, 0, 2]},
         layer2.bn1: {c: 4, on: [1, 0, 2, 3]}, bn3: {n: 2, c: 2, on: [2, 3, 1, 0]}}}""",
    ),
    "statistics on other workers than what they are for": (
        "residual",
        6,
        """
        {workers: 4, ops: {conv1: {n: 2, on: [0, 1]}, layer1.bn1.sums: {n: 3, on: [3, 2, 1]}, layer1.bn1: {on: [3]},
         layer1.add: {c: 4, on: [0, 1, 2, 3]}, layer2.bn2.sums: {on: [0]}, concat: {c: 3, on: [0, 2, 3]}}}""",
    ),
    "the two ways of a block on two workers": (
        "residual",
        5,
        """
        {workers: 2, ops: {conv1: {on: [0]}, layer2.downsample.0: {on: [1]}, side: {on: [1]}}}""",
    ),
    "sums within one worker's pass": (
        "residual",
        5,
        """
        {workers: 2, scheme: c, ops: {conv1: {n: 1, on: [0]}, layer2.bn1: {on: [1]}}}""",
    ),
    "branches in a pipeline": (
        "branches",
        12,
        """
        {workers: 3, micro_batches: 4, ops: {conv1: {on: [0]}, pool: {on: [1]}, conv3: {on: [1]}, concat: {on: [2]},
         fc5: {on: [0]}, concat_1: {on: [1]}}}""",
    ),
    "branches with other samples on the same workers": (
        "branches",
        6,
        """
        {workers: 2, ops: {conv1: {h: 2, on: [0, 1]}, conv2: {n: 2, on: [0, 1]}, pool: {h: 2, on: [0, 1]},
         flatten: {c: 2, on: [1, 0]}, fc5: {n: 2, on: [1, 0]}, short: {k: 2, on: [0, 1]}}}""",
    ),
    "branches of a pass": (
        "branches",
        9,
        """
        {workers: 3, scheme: c, micro_batches: 3, ops: {conv1: {n: 3, on: [0, 1, 2]}, add: {c: 3, on: [2, 1, 0]},
         fc4: {c: 2, on: [1, 2]}}}""",
    ),
    "a concatenation of which a worker has one input": (
        "branches",
        4,
        """
        {workers: 4, ops: {conv1: {on: [2]}, concat: {c: 4, on: [3, 2, 1, 0]}, fc6: {k: 4, on: [0, 1, 2, 3]}}}""",
    ),
}


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
