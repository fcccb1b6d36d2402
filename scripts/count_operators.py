"""Count the operators of a training step of `single` beside those of a plain PyTorch loop.

    python scripts/count_operators.py --model alexnet --image-size 64

`plain` is the hand-written loop of bench_strategies.py: channels_last, fused SGD, torch's own dropout,
the loss not summed over an epoch. The counts do not depend on the machine, so a CPU shows what a GPU's
host has to do in a step: `operators` are all that torch dispatches, `kernels` those that compute, not
only make a view or allocate. Dropout masks count as one operator, as they are one kernel on a GPU; on a
CPU one consists of some 40 small operators.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from bench_strategies import CLASSES, LR, MOMENTUM, WEIGHT_DECAY, plain
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from parallel.graph import trace
from parallel.models import MODELS, build_model
from parallel.program.lowering import lower
from parallel.runtime.communication.world import World
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime
from parallel.strategies import Single, build_plan

WITHOUT_KERNEL = frozenset({"empty", "empty_like", "empty_strided", "_unsafe_view", "lift_fresh"})
"""Operators that allocate, or return a view though their schema does not say so."""


class OperatorCount(TorchDispatchMode):
    """Counts the operators that torch dispatches."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        function: Any,
        types: Any,
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        name = function.overloadpacket.__name__
        if function.namespace != "profiler":
            self.operators[name] += 1
            if not function.is_view and name not in WITHOUT_KERNEL:
                self.kernels[name] += 1
        return function(*arguments, **(options or {}))


def counted(step: Callable[[], object]) -> OperatorCount:
    """Return the count of one step after two others."""
    step()
    step()
    with OperatorCount() as count:
        step()
    return count


def counts(
    network: nn.Module, shape: tuple[int, ...], labels: Tensor, precision: str
) -> tuple[OperatorCount, OperatorCount]:
    """Return the counts of the plain loop and of `single`, for images of `shape` with these labels."""
    images = torch.randn(len(labels), *shape).contiguous(memory_format=torch.channels_last)
    graph = trace(network, shape)
    program = lower(graph, build_plan(graph, 1, Single()), len(labels))
    options = EngineOptions(0, precision, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    runtime = Runtime(program, network, World(0, 1, torch.device("cpu"), "none"), options)
    return (
        counted(plain(network, images, labels, precision)),
        counted(lambda: runtime.train_step(images, labels, step=1, lr=LR)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="alexnet", choices=list(MODELS))
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--list", action="store_true", help="show every kernel of which the counts differ")
    arguments = parser.parse_args()
    size = arguments.image_size
    network = build_model(replace(MODELS[arguments.model].options, image_size=size), CLASSES, seed=0)
    labels = torch.randint(CLASSES, (arguments.batch_size,))
    theirs, ours = counts(network, (3, size, size), labels, arguments.precision)
    print(f"{arguments.model}, {size} px, {arguments.precision}: a training step")
    print(f"{'':10}{'plain':>8}{'single':>8}")
    for name in ("operators", "kernels"):
        one, other = (getattr(count, name).total() for count in (theirs, ours))
        print(f"{name:10}{one:8}{other:8}   {other / one:.2f}×")
    if arguments.list:
        for name in sorted(ours.kernels | theirs.kernels):
            if ours.kernels[name] != theirs.kernels[name]:
                print(f"  {name:38}{theirs.kernels[name]:4}{ours.kernels[name]:8}")


if __name__ == "__main__":
    main()
