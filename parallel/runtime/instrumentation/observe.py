"""Observing every op's results while a step runs, for `trainer.check_finite` and `parallel.verify`.

Without an observer there is no overhead: the runtime calls the op's own forward and registers no
hook.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from parallel.graph.box import Box
from parallel.graph.ops import Context, Op, Part

OpForward = Callable[[Part, Sequence[Tensor], Mapping[str, Tensor], Context], Tensor]


class Observer:
    """Receives the tensors of one worker's training steps. The base class ignores them.

    `rows` are the positions of a tensor's samples in the global batch; `box` is the part of the
    op's output, whose span of samples may be that of another micro-batch. Copy a tensor to keep it:
    later ops may change it in place.
    """

    def output(self, op: str, box: Box, rows: Tensor, tensor: Tensor) -> None:
        """Receive the output of an op's forward."""

    def output_gradient(self, op: str, box: Box, rows: Tensor, gradient: Tensor) -> None:
        """Receive the gradient of an op's output, summed over its consumers."""

    def input_gradient(self, op: str, producer: str, rows: Tensor, gradient: Tensor) -> None:
        """Receive the gradient of the part of an input that `op` read, from its whole segment."""

    def parameter_gradient(self, op: str, name: str, gradient: Tensor) -> None:
        """Receive the gradient of a parameter of `op` from one micro-batch."""


def observed(op: Op, observer: Observer) -> OpForward:
    """Return the op's forward, observed in training together with its backward."""

    def forward(
        part: Part, xs: Sequence[Tensor], parameters: Mapping[str, Tensor], context: Context
    ) -> Tensor:
        if not context.training:
            return op.forward(part, xs, parameters, context)
        for producer, x in zip(op.inputs, xs, strict=False):  # the loss also reads labels
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
    """Observe the gradients of all parameters, given by op and name."""
    for op, named in parameters.items():
        for name, parameter in named.items():
            parameter.register_hook(partial(observer.parameter_gradient, op, name))


def observe_modules(model: nn.Module, observer: Observer, rows: Callable[[int], Tensor]) -> None:
    """Observe the layers of a plain model, each under the name that its op has.

    `rows` returns the positions in the global batch for a given number of samples.
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
    """Return whether all elements are finite. Synchronises with the device."""
    return bool(torch.isfinite(tensor).all())
