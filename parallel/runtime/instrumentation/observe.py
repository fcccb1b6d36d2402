"""Looking at every op's results while a step runs: for `trainer.check_finite` and for `parallel.verify`.

Without an observer nothing of this is in the way: the runtime calls an op's own forward, and no hook is set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from parallel.graph.box import Box
from parallel.graph.ops import Context, Op, Part

Forward = Callable[[Part, Sequence[Tensor], Mapping[str, Tensor], Context], Tensor]


class Observer:
    """Is shown the tensors of one worker's training steps; this one looks at none.

    `rows` are the positions in the global batch of a tensor's samples, `box` is the part of the op's output (its span
    of samples may be another micro-batch's). Tensors must be copied if they are kept: later ops may change them.
    """

    def output(self, op: str, box: Box, rows: Tensor, tensor: Tensor) -> None:
        """What an op's forward gave."""

    def output_gradient(self, op: str, box: Box, rows: Tensor, gradient: Tensor) -> None:
        """What the backward of all that read the output gave, added up."""

    def input_gradient(self, op: str, producer: str, rows: Tensor, gradient: Tensor) -> None:
        """What the backward of `op` (and of others in its segment) gave for the part of an input that it read."""

    def parameter_gradient(self, op: str, name: str, gradient: Tensor) -> None:
        """What the backward of `op` gave for a parameter, in one micro-batch."""


def observed(op: Op, observer: Observer) -> Forward:
    """The op's forward, in training shown to the observer together with its backward."""

    def forward(part: Part, xs: Sequence[Tensor], parameters: Mapping[str, Tensor], context: Context) -> Tensor:
        if not context.training:
            return op.forward(part, xs, parameters, context)
        for producer, x in zip(op.inputs, xs, strict=False):  # the loss reads labels, too
            if x.requires_grad:
                x.register_hook(partial(observer.input_gradient, op.name, producer, context.samples))
        out = op.forward(part, xs, parameters, context)
        box = op.output_box(part)
        observer.output(op.name, box, context.samples, out.detach())
        if out.requires_grad:
            out.register_hook(partial(observer.output_gradient, op.name, box, context.samples))
        return out

    return forward


def observe_parameters(parameters: Mapping[str, Mapping[str, Tensor]], observer: Observer) -> None:
    """Show the gradients of all parameters, given by op and name."""
    for op, named in parameters.items():
        for name, parameter in named.items():
            parameter.register_hook(partial(observer.parameter_gradient, op, name))


def observe_modules(model: nn.Module, observer: Observer, rows: Callable[[int], Tensor]) -> None:
    """Show what the layers of a plain model compute, each under its own name, the names of ops that are layers.

    `rows` gives the positions of a batch of so many samples.
    """

    def hook(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        if not layer.training:
            return
        box, positions = Box.whole(tuple(out.shape)), rows(len(out))
        observer.output(name, box, positions, out.detach())
        if out.requires_grad:
            out.register_hook(partial(observer.output_gradient, name, box, positions))

    for name, layer in model.named_modules():
        if not list(layer.children()):
            layer.register_forward_hook(partial(hook, name))
            observe_parameters({name: dict(layer.named_parameters())}, observer)


def all_finite(tensor: Tensor) -> bool:
    """Waits for the device."""
    return bool(torch.isfinite(tensor).all())
