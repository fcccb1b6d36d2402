"""Every worker's program keeps NCCL's rules of order, and the rules reject every program with a swap.

Each worker of a plan runs in turn with the real runtime as on NCCL; a recorder takes the place of the
messages (`nccl_replay`), and `nccl_rules` checks what all of them would enqueue. The environment variable
PARITY_PLANS sets the number of random plans.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, Phase, given, seed, settings

from parallel.calibration.link_fit import patterns
from parallel.calibration.messages import Messages, latency_in_a_step_s, overlap_slowdown
from parallel.config import StrategyConfig
from parallel.graph import trace
from parallel.models.alexnet import AlexNetConfig
from parallel.models.alexnet import build as build_alexnet
from parallel.plans import Plan, read_plan
from parallel.program.lowering import BUCKET_BYTES, lower
from parallel.results.hosts import Host
from parallel.runtime.communication.bandwidth import measured
from parallel.runtime.communication.groups import Groups
from parallel.runtime.communication.transport import Transport
from parallel.runtime.communication.world import World
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.instrumentation.clock import Clock
from parallel.strategies import DataParallel, ModelParallel, OneWeirdTrick, build_plan
from tests.support.named_plans import NAMED, WRITTEN, title
from tests.support.nccl_replay import CPU, FEW_STEPS, META, STEPS, Recorder, fake_group, replay
from tests.support.nccl_rules import (
    RECEIVE,
    SEND,
    Begun,
    Dependences,
    Event,
    Group,
    Operation,
    OrderError,
    Run,
    Waited,
    check,
    check_nccl,
    neighbours,
    swapped,
)
from tests.support.small_models import MODELS, build, graph_of, plans

DRAWN = int(os.environ.get("PARITY_PLANS", "36"))
Hosts = tuple[int, ...] | None
"""Host of every worker, whose messages sum the gradients. None: collectives sum them, as in NCCL's runs."""
ON_HOSTS = (0, 0, 1, 1)


def run_of(
    model: str,
    plan: Plan,
    batch_size: int,
    *,
    bucket_bytes: int = BUCKET_BYTES,
    hosts: Hosts = None,
    steps: tuple[str, ...] = FEW_STEPS,
    options: EngineOptions | None = None,
) -> Run:
    network, shape = build(model)
    with (
        patch("parallel.program.lowering.BUCKET_BYTES", bucket_bytes),
        patch("parallel.program.lowering.COLLECTIVE_BYTES", bucket_bytes),
    ):
        own = () if hosts is None else hosts[: plan.workers]
        program = lower(graph_of(model), plan, batch_size, own, collectives=hosts is None)
    return replay(program, network, shape, steps=steps, options=options)


def named_run(
    n: int, strategy: StrategyConfig, bucket_bytes: int, hosts: Hosts, steps: tuple[str, ...] = FEW_STEPS
) -> Run:
    model = "towers" if strategy.name == "model_parallel" else "tower"
    plan = build_plan(graph_of(model), n, strategy)
    samples = (5 if n != 3 else 4) * plan.micro_batches
    return run_of(model, plan, samples, bucket_bytes=bucket_bytes, hosts=hosts, steps=steps)


def written_run(case: str, bucket_bytes: int, hosts: Hosts, steps: tuple[str, ...] = FEW_STEPS) -> Run:
    model, batch_size, text = WRITTEN[case]
    plan = read_plan(text, graph_of(model))
    return run_of(model, plan, batch_size, bucket_bytes=bucket_bytes, hosts=hosts, steps=steps)


# The plans.


@pytest.mark.parametrize(("n", "strategy"), NAMED, ids=[title(*case) for case in NAMED])
def test_named_strategies(n: int, strategy: StrategyConfig) -> None:
    check(named_run(n, strategy, 512, None))


@pytest.mark.parametrize("case", WRITTEN)
def test_written_plans(case: str) -> None:
    check(written_run(case, 64, None))
    check(written_run(case, 64, ON_HOSTS))


@pytest.mark.slow
@pytest.mark.parametrize("bucket_bytes", [64, 512, BUCKET_BYTES])
@pytest.mark.parametrize("hosts", [None, (), ON_HOSTS, (0, 1, 1, 1)], ids=str)
def test_named_and_written_plans_on_hosts(bucket_bytes: int, hosts: Hosts) -> None:
    for n, strategy in NAMED:
        check(named_run(n, strategy, bucket_bytes, hosts, STEPS))
    for case in WRITTEN:
        check(written_run(case, bucket_bytes, hosts, STEPS))


def check_drawn(model: str, count: int, hosts: Hosts) -> None:
    @seed(2014)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(plans(graph_of(model)))
    def every(drawn: tuple[Plan, int]) -> None:
        check(run_of(model, *drawn, bucket_bytes=64, hosts=hosts))

    every()


@pytest.mark.parametrize("model", MODELS)
def test_plans_drawn_at_random(model: str) -> None:
    """Half of them sum gradients by collectives, the others by messages in levels, on two hosts."""
    count = -(-DRAWN // len(MODELS) // 2)
    for hosts in (None, ON_HOSTS):
        check_drawn(model, count, hosts)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_many_plans_drawn_at_random(model: str) -> None:
    for hosts in (None, (), ON_HOSTS, (0, 1, 1, 1)):
        check_drawn(model, 25, hosts)


ALEXNET: list[tuple[str, int, StrategyConfig, int, Hosts]] = [
    ("owt", 4, DataParallel(), 64, ON_HOSTS),
    ("owt", 2, OneWeirdTrick(scheme="c", update="pass"), 64, None),
    ("original", 4, ModelParallel(micro_batches=4), 64, None),
]
MORE_ALEXNET: list[tuple[str, int, StrategyConfig, int, Hosts]] = [
    *(
        ("owt", n, strategy, 128, hosts)
        for n, hosts in ((4, None), (4, ON_HOSTS), (8, None), (8, (0, 0, 0, 0, 1, 1, 1, 1)))
        for strategy in (
            DataParallel(),
            ModelParallel(scheme="tensor"),
            ModelParallel(micro_batches=4),
            OneWeirdTrick(scheme="a"),
            OneWeirdTrick(scheme="b"),
            OneWeirdTrick(scheme="c", update="pass"),
        )
    ),
    ("original", 2, DataParallel(), 128, None),
    ("ungrouped", 2, OneWeirdTrick(scheme="b"), 128, (0, 1)),
]


def check_alexnet(variant: str, n: int, strategy: StrategyConfig, batch_size: int, hosts: Hosts) -> None:
    shape = (3, 224, 224)
    with torch.device("meta"):
        network = build_alexnet(AlexNetConfig(variant=variant), 1000)
    graph = trace(network, shape)
    plan = build_plan(graph, n, strategy)
    program = lower(graph, plan, batch_size, hosts or (), collectives=hosts is None)
    check(replay(program, network, shape, steps=("training", "training"), device=META))


@pytest.mark.parametrize(("variant", "n", "strategy", "batch_size", "hosts"), ALEXNET)
def test_alexnet(variant: str, n: int, strategy: StrategyConfig, batch_size: int, hosts: Hosts) -> None:
    """With its full size on the meta device, so that buckets are the real ones."""
    check_alexnet(variant, n, strategy, batch_size, hosts)


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "n", "strategy", "batch_size", "hosts"), MORE_ALEXNET)
def test_more_alexnet(variant: str, n: int, strategy: StrategyConfig, batch_size: int, hosts: Hosts) -> None:
    check_alexnet(variant, n, strategy, batch_size, hosts)


def test_shards_without_elements_are_not_sent() -> None:
    """On 8 workers, a layer's 5 biases have 3 empty shards."""
    plan = build_plan(graph_of("tower"), 8, DataParallel())
    run = run_of("tower", plan, 8, bucket_bytes=4, hosts=())
    check(run)
    assert any(len(group.operations) < 7 * 2 for stream in run.streams for group in stream)


@pytest.mark.parametrize("precision", ["bf16", "fp64"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_data_type_and_memory_format(precision: str, channels_last: bool) -> None:
    options = EngineOptions(seed=0, precision=precision, channels_last=channels_last)
    model, batch_size, text = WRITTEN["space, then partial sums"]
    plan = read_plan(text, graph_of(model))
    run = run_of(model, plan, batch_size, bucket_bytes=512, options=options)
    check(run)
    types = {
        operation.dtype
        for stream in run.streams
        for group in stream
        for operation in group.operations
        if operation.kind != "barrier"
    }
    assert types == ({"torch.bfloat16", "torch.float32"} if precision == "bf16" else {"torch.float64"})


def test_bf16_gathers_have_half_the_bytes_of_the_sums() -> None:
    run = run_of(
        "tower",
        build_plan(graph_of("tower"), 3, DataParallel()),
        6,
        bucket_bytes=64,
        options=EngineOptions(seed=0, precision="bf16"),
    )
    check(run)
    found = {
        (group.key[0], operation.kind, operation.dtype)
        for stream in run.streams
        for group in stream
        for operation in group.operations
        if operation.kind != "barrier"
    }
    assert found == {("sum", "reduce_scatter", "torch.float32"), ("gather", "all_gather", "torch.bfloat16")}


# The other uses of the process group.


def collective_run(size: int, use: Callable[[World], object], hosts: tuple[Host, ...] = ()) -> Run:
    """Return what every rank enqueues in `use`."""
    ranks = []
    for rank in range(size):
        recorder = Recorder(rank, size, fake=True)
        with fake_group(rank, size), recorder.recording():
            use(World(rank, size, CPU, "nccl", hosts=hosts))
        ranks.append(tuple(recorder.events))
    return Run(tuple(ranks))


def test_collectives_of_the_world() -> None:
    def use(world: World) -> None:
        world.barrier()
        assert world.gather(("short", 1)) == [("short", 1)] * 3
        long = "x" * 5000
        assert world.gather(long) == [long] * 3
        assert world.gather_to_first(long) == ([long] * 3 if world.rank == 0 else [])
        world.sum(torch.zeros(4, dtype=torch.float64))
        world.start_sum(torch.zeros(4))()

    run = collective_run(3, use)
    check(run)
    kinds = [group.operations[0].kind for group in run.streams[1]]
    assert kinds == ["barrier", *["all_gather"] * 4, "gather", "all_reduce", "all_reduce"]


@pytest.mark.parametrize("workers", [(1, 1), (2, 1), (2, 2, 1)])
def test_bandwidth_between_hosts(workers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: 0.01 * next(ticks))  # every rank measures the same
    ranks = iter(range(sum(workers)))
    hosts = tuple(
        Host(
            index=i,
            name=f"host {i}",
            workers=tuple(itertools.islice(ranks, n)),
            threads=1,
            cores=1,
            gpus=(),
            memory_bytes=None,
            interface=None,
        )
        for i, n in enumerate(workers)
    )
    check(collective_run(sum(workers), measured, hosts))


def test_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parallel.calibration.messages.SIZES", (4000, 16000))
    monkeypatch.setattr("parallel.calibration.messages.HIDDEN_BYTES", 16000)

    def use(world: World) -> None:
        transport = Transport(world, Clock(world.device))
        messages = Messages(world, transport)
        for pattern in patterns(range(world.size)):
            messages.seconds(pattern, 16000)
        overlap_slowdown(messages, world, lambda: None, 1)
        latency_in_a_step_s(messages, world, list(patterns(range(world.size))), lambda between: between(), 1)
        transport.close()

    check(collective_run(4, use))


def test_communicators_are_split_while_nothing_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(World, "barrier", lambda world: calls.append("barrier"))
    monkeypatch.setattr(Groups, "make", lambda groups, workers: calls.append(workers))
    monkeypatch.setattr(Groups, "missing", lambda groups, sets: [one for one in sets if one != (0, 2)])
    world = World(0, 3, CPU, "nccl")
    world.open_groups([(0, 1), (0, 2), (1, 2)])
    world.open_groups([(0, 2)])
    assert calls == ["barrier", (0, 1), (1, 2)]


def test_the_fake_backend_refuses_what_torch_refuses() -> None:
    """The replay hands everything to torch, whose checks are those of any backend."""
    with fake_group(1, 2):
        with pytest.raises(ValueError, match="Invalid ``op``"):
            dist.P2POp(dist.send, torch.zeros(1), 0)
        with pytest.raises(TypeError, match="Invalid function argument"):
            dist.P2POp(dist.isend, [1.0], 0)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="Invalid ``p2p_op_list``"):
            dist.batch_isend_irecv([torch.zeros(1)])  # type: ignore[list-item]


# The rules.


def send(peer: int, elements: int = 1, dtype: str = "torch.float32", contiguous: bool = True) -> Operation:
    return Operation(SEND, (peer,), elements, dtype, contiguous)


def receive(peer: int, elements: int = 1, dtype: str = "torch.float32") -> Operation:
    return Operation(RECEIVE, (peer,), elements, dtype)


def rank_of(*groups: tuple[str, list[Operation]]) -> tuple[Event, ...]:
    """Return a rank that starts all groups, then waits for all."""
    started = [Group(i, (key,), tuple(operations)) for i, (key, operations) in enumerate(groups)]
    return (*started, *(Waited(i) for i in range(len(groups))))


def collective(ranks: tuple[int, ...], kind: str = "all_reduce") -> Operation:
    return Operation(kind, ranks, 4, "torch.float32")


def made(*ranks: tuple[Event, ...]) -> Run:
    return Run(ranks)


GOOD = {
    "both ways in one group": made(
        rank_of(("a", [send(1), receive(1)])), rank_of(("a", [receive(0), send(0)]))
    ),
    "a ring": made(*(rank_of(("a", [send((r + 1) % 3), receive((r - 1) % 3)])) for r in range(3))),
    "two ways of one message at different times": made(
        rank_of(("a", [send(1)]), ("b", [receive(1)])), rank_of(("a", [receive(0)]), ("b", [send(0)]))
    ),
    "communicators in one order": made(
        rank_of(("x", [collective((0, 1))]), ("y", [collective((0, 1, 2))])),
        rank_of(("x", [collective((0, 1))]), ("y", [collective((0, 1, 2))])),
        rank_of(("y", [collective((0, 1, 2))])),
    ),
}
BAD: dict[str, tuple[str, Run]] = {
    "an empty message": (
        "valid: rank 0, group 0, a: send of nothing",
        made(rank_of(("a", [send(1, 0)])), rank_of(("a", [receive(0, 0)]))),
    ),
    "a tensor with gaps": (
        "valid: rank 0, group 0, a: send of a tensor with gaps",
        made(rank_of(("a", [send(1, contiguous=False)])), rank_of(("a", [receive(0)]))),
    ),
    "a send to itself": ("valid: rank 0, group 0, a: send with rank 0", made(rank_of(("a", [send(0)])))),
    "no operation": ("valid: rank 0, group 0, a: has no operation", made(rank_of(("a", [])))),
    "a data type that NCCL lacks": (
        "valid: rank 0, group 0, a: send of torch.complex64",
        made(
            rank_of(("a", [send(1, 1, "torch.complex64")])),
            rank_of(("a", [receive(0, 1, "torch.complex64")])),
        ),
    ),
    "no wait": (
        "waits: rank 1 never waits for group 0, a",
        made(rank_of(("a", [send(1)])), rank_of(("a", [receive(0)]))[:1]),
    ),
    "a wait before the start": (
        "waits: rank 1 waits for group 0 before it starts",
        made(rank_of(("a", [send(1)])), rank_of(("a", [receive(0)]))[::-1]),
    ),
    "other keys": (
        r"pairs: message 0 from rank 0 to rank 1: sent a \(1 elements, torch.float32\), received b",
        made(rank_of(("a", [send(1)])), rank_of(("b", [receive(0)]))),
    ),
    "other elements": ("pairs", made(rank_of(("a", [send(1, 2)])), rank_of(("a", [receive(0, 3)])))),
    "other data types": (
        "pairs",
        made(rank_of(("a", [send(1)])), rank_of(("a", [receive(0, 1, "torch.float64")]))),
    ),
    "a send too many": (
        "pairs: rank 0 sends 2 messages to rank 1, which receives 1",
        made(rank_of(("a", [send(1), send(1)])), rank_of(("a", [receive(0)]))),
    ),
    "both send first": (
        r"progress: deadlock: rank 0 in group 0, a needs ranks \[1\]; rank 1 in group 0, b needs ranks \[0\]",
        made(rank_of(("a", [send(1)]), ("b", [receive(1)])), rank_of(("b", [send(0)]), ("a", [receive(0)]))),
    ),
    "a ring that is not grouped": (
        "progress",
        made(*(rank_of(("a", [send((r + 1) % 3)]), ("a", [receive((r - 1) % 3)])) for r in range(3))),
    ),
    "a circle of three messages": (
        "progress",
        made(
            rank_of(("a", [send(1)]), ("c", [receive(2)])),
            rank_of(("b", [send(2)]), ("a", [receive(0)])),
            rank_of(("c", [send(0)]), ("b", [receive(1)])),
        ),
    ),
    "communicators in two orders": (
        "progress",
        made(
            rank_of(("x", [collective((0, 1))]), ("y", [collective((0, 1, 2))])),
            rank_of(("y", [collective((0, 1, 2))]), ("x", [collective((0, 1))])),
            rank_of(("y", [collective((0, 1, 2))])),
        ),
    ),
    "other collectives": (
        "members: collective 0 of ranks",
        made(rank_of(("x", [collective((0, 1))])), rank_of(("x", [collective((0, 1), "all_gather")]))),
    ),
    "a step that differs": (
        "repeated: rank 0, step 3",
        made(
            *(
                (
                    *(Begun("training"), Group(0, ("a",), (end(1 - r),)), Waited(0)),
                    *(Begun("training"), Group(1, ("a",), (end(1 - r),)), Waited(1)),
                    Begun("training"),
                )
                for r, end in enumerate((send, receive))
            )
        ),
    ),
}


@pytest.mark.parametrize("case", GOOD)
def test_a_good_order(case: str) -> None:
    check(GOOD[case])


@pytest.mark.parametrize("case", BAD)
def test_a_broken_rule(case: str) -> None:
    sentence, run = BAD[case]
    with pytest.raises(OrderError, match=f"^{sentence}"):
        check(run)


# Mutations.


SWAPPED: dict[str, Callable[[], Run]] = {
    "data parallel": lambda: named_run(3, DataParallel(), 512, None, STEPS),
    "pipeline": lambda: named_run(3, ModelParallel(micro_batches=4), 512, None, STEPS),
    "passes that update": lambda: named_run(2, OneWeirdTrick(scheme="c", update="pass"), 512, None, STEPS),
    "passes": lambda: named_run(2, OneWeirdTrick(scheme="b"), 4096, None, STEPS),
    "in levels": lambda: named_run(4, DataParallel(), 4096, ON_HOSTS, STEPS),
}


def found_by(run: Run) -> str:
    """Return the rule that the run breaks."""
    try:
        check(run)
    except OrderError as error:
        return error.rule
    return "none"


def swaps(run: Run) -> Counter[str]:
    """Return how many swaps of two neighbours each rule finds, all of which must be found."""
    found = Counter[str]()
    dependences = Dependences(run)
    for rank, first, second in neighbours(run):
        rule = found_by(swapped(run, rank, first, second))
        # NCCL's rules find exactly the swaps that can matter.
        assert (rule not in ("repeated", "none")) == dependences.ordered(rank, first, second)
        assert rule != "none", f"rank {rank}: {first} after {second}"
        found[rule] += 1
    return found


@pytest.mark.parametrize("case", SWAPPED)
def test_every_swap_of_neighbours_is_found(case: str) -> None:
    run = SWAPPED[case]()
    check(run)
    assert swaps(run).total() == sum(len(stream) - 1 for stream in run.streams)


@pytest.mark.slow
def test_every_swap_in_any_plan_is_found() -> None:
    found = sum((swaps(run) for run in every_run()), Counter[str]())
    print(dict(found))
    assert found["pairs"] and found["waits"] and found["progress"] and found["repeated"]


def every_run() -> Iterator[Run]:
    for n, strategy in NAMED:
        if n > 1:
            yield named_run(n, strategy, 512, None, STEPS)
    for case in WRITTEN:
        yield written_run(case, 512, ON_HOSTS, STEPS)


def test_swaps_that_no_rule_of_nccl_finds_share_no_rank() -> None:
    run = named_run(3, ModelParallel(micro_batches=4), 512, None, STEPS)
    equivalent = 0
    for rank, first, second in neighbours(run):
        changed = swapped(run, rank, first, second)
        try:
            check_nccl(changed)
        except OrderError:
            continue
        equivalent += 1
        assert not first.peers(rank) & second.peers(rank)
    assert equivalent
