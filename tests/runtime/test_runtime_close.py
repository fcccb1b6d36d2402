"""A process may run several programs in sequence: a closed runtime releases its memory and
files."""

from __future__ import annotations

import gc
import os

import pytest
import torch
from torch import Tensor

from parallel.config import ClusterConfig
from parallel.graph import trace
from parallel.program.lowering import lower
from parallel.runtime.communication.opening import open_world
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime
from parallel.strategies import DataParallel, OneWeirdTrick, build_plan
from tests.support.small_models import CLASSES, build
from tests.support.workers import Workers


def alive() -> tuple[int, int]:
    """Return the number of open files and the bytes of all tensors that the garbage collector
    tracks."""
    gc.collect()
    tensors = {id(o): o for o in gc.get_objects() if type(o) in (Tensor, torch.nn.Parameter)}
    return len(os.listdir("/proc/self/fd")), sum(tensor.nbytes for tensor in tensors.values())


def one_after_another(count: int) -> list[tuple[int, int]]:
    """Return `alive()` after each of `count` runtimes with alternating plans."""
    network, shape = build("tower")
    graph, left = trace(network, shape), []
    plans = [build_plan(graph, 2, DataParallel()), build_plan(graph, 2, OneWeirdTrick(scheme="a"))]
    images, labels = torch.randn(6, *shape), torch.randint(CLASSES, (6,))
    with open_world(ClusterConfig(device="cpu")) as world:
        for i in range(count):
            runtime = Runtime(lower(graph, plans[i % 2], 6), network, world, EngineOptions(0, momentum=0.9))
            for step in range(2):
                runtime.train_step(
                    images[runtime.image_positions], labels[runtime.label_positions], step=step, lr=0.01
                )
            runtime.close()
            del runtime
            world.barrier()
            left.append(alive())
    return left


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts the files of /proc")
def test_runtimes_leave_nothing(workers: Workers) -> None:
    for left in workers.run(2, one_after_another, 6):
        assert left[2:] == [left[1]] * 4
