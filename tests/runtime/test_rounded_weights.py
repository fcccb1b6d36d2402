"""Weights that are gathered in bf16: with the bits of a gather in fp32, and from fp32 weights on every shard.

The reference is the same program without `Bucket.rounded`, whose weights are gathered in fp32 and rounded by
autocast when they are read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from parallel.checkpoints.checkpoint import Checkpoint, folder_name
from parallel.config import ClusterConfig, StrategyConfig
from parallel.graph import trace
from parallel.plans import read_plan
from parallel.program import Program
from parallel.program.lowering import lower
from parallel.runtime.communication.chaos import Chaos
from parallel.runtime.communication.opening import open_world
from parallel.runtime.communication.world import World
from parallel.runtime.execution.held_bucket import HeldBucket
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime
from parallel.strategies import DataParallel, OneWeirdTrick, build_plan
from tests.support.imitated_staging import imitated_staging
from tests.support.named_plans import WRITTEN
from tests.support.saved_states import STEPS as SAVED_STEPS
from tests.support.saved_states import State, load, save, state_of
from tests.support.setups import Setup, on_host
from tests.support.side_streams import AtOnce
from tests.support.small_models import CLASSES, build, graph_of
from tests.support.workers import Workers

STEPS = 3
OPTIONS = EngineOptions(seed=0, precision="bf16", momentum=0.9, weight_decay=0.01)
LIMIT = 64
"""Bytes of a full bucket: most parameters have a bucket of their own, and small ones share some."""
SMALL = Setup(bucket_bytes=LIMIT)
BF16 = 2
"""Bytes per element of an activation."""


@dataclass(frozen=True)
class Way:
    """How messages travel."""

    shared_memory: bool = True
    hosts: tuple[int, ...] = ()
    """Host of every worker. Empty: all on one."""
    collectives: bool = False
    beside: bool = False
    """Whether shards are updated beside the compute stream."""
    strict: bool = False
    staged: bool = False
    late: bool = False

    @contextlib.contextmanager
    def opened(self) -> Iterator[World]:
        with contextlib.ExitStack() as setting:
            if self.hosts:
                setting.enter_context(on_host(self.hosts))
            if self.staged:
                setting.enter_context(imitated_staging())
            if self.beside:
                where = "parallel.runtime.execution.parameters.open_side_stream"
                setting.enter_context(patch(where, lambda _: AtOnce()))
            cluster = ClusterConfig(device="cpu", shared_memory=self.shared_memory)
            chaos = Chaos(seed=3, max_delay_s=0.002) if self.late else None
            yield setting.enter_context(open_world(cluster, chaos, strict=self.strict))


WAYS: dict[str, tuple[int, Way]] = {
    "memory": (3, Way()),
    "network": (3, Way(shared_memory=False)),
    "late": (2, Way(shared_memory=False, late=True)),
    "staged": (2, Way(staged=True)),
    "levels in memory": (4, Way(hosts=(0, 0, 1, 1))),
    "levels over a network": (3, Way(shared_memory=False, hosts=(0, 0, 1))),
    "collectives": (3, Way(collectives=True)),
    "collectives, updates beside": (2, Way(collectives=True, beside=True)),
    "NCCL's rules": (3, Way(collectives=True, strict=True)),
}


def program_of(model: str, text: str, batch_size: int, way: Way) -> Program:
    graph = trace(*build(model))
    with (
        patch("parallel.program.lowering.BUCKET_BYTES", LIMIT),
        patch("parallel.program.lowering.COLLECTIVE_BYTES", LIMIT),
    ):
        return lower(graph, read_plan(text, graph), batch_size, way.hosts, collectives=way.collectives)


def gathered_in_fp32(program: Program) -> Program:
    return replace(program, buckets=tuple(replace(bucket, rounded=False) for bucket in program.buckets))


@dataclass(frozen=True)
class Trained:
    """One worker's side of a training."""

    state: State
    """On worker 0."""
    results: list[Tensor]
    """Losses, and the metrics of evaluations between the steps."""
    sent: int
    """Bytes that the worker sent in all training steps."""
    held: set[str]
    """Data types of the weights of buckets that several workers hold."""


def train(program: Program, model: str, way: Way, options: EngineOptions = OPTIONS) -> Trained:
    network, shape = build(model)
    torch.manual_seed(5)
    images = torch.randn(program.batch_size, *shape)
    labels = torch.randint(CLASSES, (program.batch_size,))
    with way.opened() as world:
        runtime = Runtime(program, network, world, options)
        own = images[runtime.image_positions], labels[runtime.label_positions]
        results, sent = [], 0
        for step in range(STEPS):
            before = runtime.bytes_sent
            results.append(runtime.train_step(*own, step=step, lr=0.1))
            runtime.complete()
            sent += runtime.bytes_sent - before
            results.append(runtime.evaluate_step(*own))
        state = state_of(runtime, world)
        held = {
            str(parameter.dtype)
            for bucket in runtime.parameters.buckets.values()
            if bucket.shared
            for parameter in bucket.parameters.values()
        }
        world.barrier()
        runtime.close()
    return Trained(state, results, sent, held)


@dataclass(frozen=True)
class Compared:
    """A training with gathers in bf16 beside one with gathers in fp32, by one worker."""

    differences: tuple[str, ...]
    tensors: int
    """How many were compared."""
    sent: tuple[int, int]
    """Bytes that it sent with the gathers in fp32, and in bf16."""
    counted: tuple[int, int]
    """Bytes that the programs say."""
    saved: int
    """Half the bytes of the gathers in fp32, as that program says."""
    held: tuple[frozenset[str], frozenset[str]]


def compare_gathers(
    model: str, text: str, batch_size: int, way: Way, options: EngineOptions = OPTIONS, broken: bool = False
) -> Compared:
    program = program_of(model, text, batch_size, way)
    programs = gathered_in_fp32(program), program
    rank = int(os.environ["RANK"])
    plain = train(programs[0], model, way, options)
    with patch.object(HeldBucket, "round", lambda _: None) if broken else contextlib.nullcontext():
        rounded = train(programs[1], model, way, options)
    pairs = {f"result {i}": two for i, two in enumerate(zip(plain.results, rounded.results, strict=True))}
    for kind, tensors in plain.state.items():
        assert tensors.keys() == rounded.state[kind].keys()
        pairs |= {f"{kind} {name}": (tensor, rounded.state[kind][name]) for name, tensor in tensors.items()}
    return Compared(
        tuple(name for name, (one, other) in pairs.items() if not torch.equal(one, other)),
        len(pairs),
        (plain.sent, rounded.sent),
        tuple(STEPS * program.bytes_sent(rank, BF16) for program in programs),
        STEPS * programs[0].sent(rank, BF16).gathers // 2,
        (frozenset(plain.held), frozenset(rounded.held)),
    )


def check(found: Compared, held: set[str]) -> None:
    assert found.differences == () and found.tensors >= 2 * STEPS
    assert found.sent == found.counted
    assert found.held == ({"torch.float32"}, held)


@pytest.mark.parametrize("name", WAYS)
def test_the_bits_are_those_of_a_gather_in_fp32(workers: Workers, name: str) -> None:
    count, way = WAYS[name]
    plan = str(build_plan(graph_of("tower"), count, DataParallel()))
    for found in workers.run(count, compare_gathers, "tower", plan, 7, way):
        check(found, {"torch.bfloat16"})
        assert found.saved > 0 and found.sent[0] - found.sent[1] == found.saved


NAMED: list[tuple[int, StrategyConfig]] = [
    (2, OneWeirdTrick(scheme="b")),
    (3, OneWeirdTrick(scheme="c", update="pass")),
]


@pytest.mark.parametrize("collectives", [False, True])
@pytest.mark.parametrize(("count", "strategy"), NAMED)
def test_strategies(workers: Workers, count: int, strategy: StrategyConfig, collectives: bool) -> None:
    plan = build_plan(graph_of("tower"), count, strategy)
    way = Way(collectives=collectives)
    for found in workers.run(count, compare_gathers, "tower", str(plan), 4 * plan.micro_batches, way):
        check(found, {"torch.bfloat16"})


@pytest.mark.parametrize("name", ["a pipeline whose stages are data parallel", "weights in every dim"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_written_plans(workers: Workers, name: str, channels_last: bool) -> None:
    """With gradients of several micro-batches, which are added up in fp32, and groups that are cut."""
    model, batch_size, text = WRITTEN[name]
    plan, options = read_plan(text, graph_of(model)), replace(OPTIONS, channels_last=channels_last)
    found = workers.run(
        plan.workers, compare_gathers, model, text, batch_size, Way(shared_memory=False), options
    )
    assert any(one.saved for one in found)
    for one in found:
        check(one, {"torch.bfloat16"} if one.saved else set())


@pytest.mark.parametrize("collectives", [False, True])
def test_weights_of_batch_norm_are_gathered_in_fp32(workers: Workers, collectives: bool) -> None:
    """And so is what shares a bucket with them."""
    plan, way = str(build_plan(graph_of("residual"), 2, DataParallel())), Way(collectives=collectives)
    for bucket in program_of("residual", plan, 6, way).buckets:
        assert bucket.rounded == (not any("bn" in op or "downsample.1" in op for op, _ in bucket.parameters))
    for found in workers.run(2, compare_gathers, "residual", plan, 6, way):
        check(found, {"torch.bfloat16", "torch.float32"})
        assert 0 < found.sent[0] - found.sent[1] < found.saved


def test_a_shard_that_is_not_rounded_shows(workers: Workers) -> None:
    plan = str(build_plan(graph_of("tower"), 2, DataParallel()))
    found = workers.run(2, compare_gathers, "tower", plan, 7, Way(), OPTIONS, True)[0]
    assert any(name.startswith("weights") for name in found.differences)


def test_other_precisions_are_not_rounded(workers: Workers) -> None:
    plan = str(build_plan(graph_of("tower"), 2, DataParallel()))
    found = workers.run(2, compare_gathers, "tower", plan, 7, Way(), replace(OPTIONS, precision="fp32"))[0]
    assert found.differences == () and found.held == ({"torch.float32"},) * 2


def test_checkpoints_hold_fp32_weights(workers: Workers, tmp_path: Path) -> None:
    """They are those of one worker, which rounds no weights that it holds, and load everywhere."""
    plans = {count: str(build_plan(graph_of("tower"), count, DataParallel())) for count in (1, 2, 3)}
    saved = {n: workers.run(n, save, "tower", plans[n], tmp_path / str(n), SMALL, OPTIONS)[0] for n in (1, 2)}
    for weights in (state["weights"] for state in saved.values()):
        assert all(tensor.dtype == torch.float32 for tensor in weights.values())
        assert not any(torch.equal(tensor, tensor.bfloat16().float()) for tensor in weights.values())
    folders = [tmp_path / str(n) / folder_name(SAVED_STEPS) for n in saved]
    for count, plan in plans.items():
        for ours, theirs in zip(
            workers.run(count, load, "tower", plan, folders, SMALL, OPTIONS)[0], saved.values(), strict=True
        ):
            for kind, tensors in theirs.items():
                assert all(torch.equal(ours[kind][name], tensor) for name, tensor in tensors.items()), kind


def evaluated(plan: str, folder: Path) -> list[Tensor]:
    """Return the metrics before and after a checkpoint is loaded, with gathers in bf16 and in fp32."""
    program = program_of("tower", plan, 7, Way())
    network, shape = build("tower")
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(7, *shape, generator=generator)
    labels = torch.randint(CLASSES, (7,), generator=generator)
    found = []
    for one in (program, gathered_in_fp32(program)):
        with Way().opened() as world:
            runtime = Runtime(one, network, world, OPTIONS)
            own = images[runtime.image_positions], labels[runtime.label_positions]
            found.append(runtime.evaluate_step(*own))
            world.barrier()  # workers of a host share weights, which another one may still be reading
            runtime.load(Checkpoint(folder).read)
            world.barrier()
            found.append(runtime.evaluate_step(*own))
            world.barrier()
            runtime.close()
    return found


def test_what_was_loaded_is_read(workers: Workers, tmp_path: Path) -> None:
    plan = str(build_plan(graph_of("tower"), 2, DataParallel()))
    workers.run(2, save, "tower", plan, tmp_path, SMALL, OPTIONS)
    for before, after, before_in_fp32, after_in_fp32 in workers.run(
        2, evaluated, plan, tmp_path / folder_name(SAVED_STEPS)
    ):
        assert torch.equal(before, before_in_fp32) and torch.equal(after, after_in_fp32)
        assert not torch.equal(before, after)
