"""One worker's side of a comparison with plain PyTorch, and of counting bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from parallel.graph import trace
from parallel.plans import read_plan
from parallel.runtime.communication.opening import open_world
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime
from parallel.verification.parity import Case, Difference, compare_cases
from tests.support.setups import Setup
from tests.support.small_models import build

PLAIN = Setup()


@dataclass(frozen=True)
class Compared:
    """A plan beside plain PyTorch."""

    difference: Difference
    collective: frozenset[tuple[int, ...]]
    """Sets of workers whose gradients a collective sums."""
    in_levels: bool
    """Whether some bucket is summed in levels."""


def compare(model: str, plan: str, batch_size: int, setup: Setup = PLAIN, steps: int = 3) -> Compared:
    """Train and evaluate a small model with a plan, which is passed as text, and with plain PyTorch."""
    network, shape = build(model)
    case = Case(
        network,
        read_plan(plan, trace(network, shape)),
        shape,
        batch_size,
        steps,
        seed=11,
        hosts=setup.hosts,
        collectives=setup.collectives,
    )
    with setup.applied():
        assert case.program is not None
        buckets = case.program.buckets
        difference = compare_cases([case], setup.cluster, setup.chaos, strict=setup.strict)[0]
    return Compared(
        difference,
        frozenset(bucket.workers for bucket in buckets if bucket.collective),
        any(bucket.levels for bucket in buckets),
    )


def sent_bytes(model: str, plan: str, batch_size: int, setup: Setup = PLAIN) -> tuple[int, int]:
    """Return the bytes that this worker sends in a step, and those that the program says."""
    network, shape = build(model)
    graph = trace(network, shape)
    with setup.applied():
        program = setup.lower(graph, read_plan(plan, graph), batch_size)
        with open_world(setup.cluster, setup.chaos, strict=setup.strict) as world:
            runtime = Runtime(program, network, world, EngineOptions(seed=0))
            images = torch.randn(len(runtime.image_positions), *shape)
            labels = torch.zeros(len(runtime.label_positions), dtype=torch.int64)
            runtime.train_step(images, labels, step=0, lr=0.1)
            runtime.complete()
            sent = runtime.bytes_sent
            world.barrier()
            runtime.close()
    return sent, program.bytes_sent(world.rank, 4)
