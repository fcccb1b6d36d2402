"""One step on one worker: the values and gradients that live from its start to its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from parallel.graph import INPUT, LOSS
from parallel.graph.ops import Context
from parallel.program import Exchange
from parallel.runtime.communication.exchange import Format, Moving, finish, start
from parallel.runtime.communication.transport import Transport
from parallel.runtime.execution.metrics import sum_metrics
from parallel.runtime.execution.parameters import Parameters
from parallel.runtime.execution.prepared import Prepared, SegmentWork

ValueKey = tuple[str, int | None]
"""Op, and micro-batch of its output; None: all micro-batches, in a merged segment."""
LeafKey = tuple[str, str, int | None]
"""Producer, consumer, micro-batch."""


@dataclass(frozen=True)
class WorkerState:
    """A worker's state that outlives its steps."""

    prepared: Prepared
    parameters: Parameters
    buffers: Mapping[str, Mapping[str, Tensor]]
    """By op and name."""
    transport: Transport
    form: Format
    """Format of activations."""
    autocast: bool


class StepRun:
    """State of one step: each instruction of the program is a method."""

    def __init__(
        self, state: WorkerState, images: Tensor, labels: Tensor, *, training: bool, key: Tensor
    ) -> None:
        """`images` and `labels` are this worker's rows; `key` chooses the dropout masks."""
        self._p, self._parameters, self._buffers = state.prepared, state.parameters, state.buffers
        self._transport, self._form, self._autocast = state.transport, state.form, state.autocast
        self._images, self._labels = images, labels
        self._training, self._key = training, key
        self._values: dict[ValueKey, Tensor] = {}
        self._gradients: dict[ValueKey, Tensor] = {}
        self._leaves: dict[LeafKey, Tensor] = {}
        self._moving: dict[tuple[int, int, bool], Moving] = {}
        self._loss: Tensor | None = None
        self._metrics: Tensor | None = None

    @property
    def loss(self) -> Tensor:
        """This worker's part of the mean loss, float64."""
        return self._zeros() if self._loss is None else self._loss

    @property
    def metrics(self) -> Tensor:
        """This worker's part of the metrics in evaluation, float64 [4]."""
        return self._zeros(4) if self._metrics is None else self._metrics

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self._form.device)

    def forward(self, work: SegmentWork) -> None:
        p, segment, m = self._p, work.segment, work.micro_batch
        leaves: dict[tuple[str, str], Tensor] = {}
        for op, (rows, box) in work.images.items():
            leaves[INPUT, op] = _part(self._images, rows, *(slice(*span) for span in box.spans[1:]))
        for producer, op in p.entering[segment.index]:
            if (producer, op, m) not in self._leaves:  # computed here, not received
                leaf = self._values[producer, m].detach().requires_grad_(self._training)
                self._leaves[producer, op, m] = leaf
            leaves[producer, op] = self._leaves[producer, op, m]
        labels = _part(self._labels, work.labels)
        context = Context(self._training, self._key, work.samples, self._buffers, work.constants)
        with (
            torch.autocast(self._form.device.type, torch.bfloat16, enabled=self._autocast),
            torch.set_grad_enabled(self._training),
        ):
            outputs = p.compute[segment.index](work.parts, leaves, labels, self._parameters, context)
        for name, tensor in outputs.items():
            self._values[name, m] = tensor
        if LOSS in outputs:
            loss = (outputs[LOSS].detach().sum() / p.program.batch_size).double()
            self._loss = loss if self._loss is None else self._loss.add_(loss)
            if not self._training:
                (logits,) = p.program.graph[LOSS].inputs
                scores = leaves[logits, LOSS] if (logits, LOSS) in leaves else outputs[logits]
                metrics = sum_metrics(scores, labels, outputs[LOSS])
                self._metrics = metrics if self._metrics is None else self._metrics.add_(metrics)

    def backward(self, work: SegmentWork) -> None:
        p, segment, m = self._p, work.segment, work.micro_batch
        tensors, gradients = [], []
        for name in p.leaving[segment.index]:
            tensor = self._values.pop((name, m))
            if name == LOSS:
                tensors.append(tensor)
                gradients.append(torch.full_like(tensor, p.program.loss_scale))
            elif (name, m) in self._gradients:
                returned = self._gradients.pop((name, m))
                if tensor.requires_grad:  # otherwise it depends on images only, not on weights
                    tensors.append(tensor)
                    gradients.append(returned.to(tensor.dtype))
        torch.autograd.backward(tensors, gradients)
        for producer, op in p.entering[segment.index]:
            if (op, producer) in p.incoming:
                continue  # its exchange returns the gradient
            gradient = self._leaves.pop((producer, op, m)).grad
            if gradient is not None:
                self._add_gradient(producer, m, gradient)

    def start(self, index: int, m: int, backward: bool) -> None:
        p, exchange, held = self._p, self._p.program.exchanges[index, m], None
        moves = p.moves[index, m][backward]
        if not backward and moves.has is not None:
            merged = exchange.value in p.rows
            held = self._values[exchange.value, None if merged else m]
            held = held[p.rows[exchange.value][m]] if merged else held
        if backward and moves.has is not None:
            held = self._leaves.pop((exchange.value, exchange.consumer, m)).grad
        self._moving[index, m, backward] = start(moves, held, self._transport, self._form_of(exchange))

    def wait(self, index: int, m: int, backward: bool) -> None:
        exchange = self._p.program.exchanges[index, m]
        tensor = finish(self._moving.pop((index, m, backward)), self._transport, self._form_of(exchange))
        if tensor is None:
            return
        if backward:
            self._add_gradient(exchange.value, m, tensor)
        else:
            leaf = tensor.detach().requires_grad_(self._training)
            self._leaves[exchange.value, exchange.consumer, m] = leaf

    def _form_of(self, exchange: Exchange) -> Format:
        return replace(self._form, dtype=torch.float64) if exchange.wide else self._form

    def _add_gradient(self, value: str, m: int | None, gradient: Tensor) -> None:
        p = self._p
        if value in p.rows and m is not None:
            if (value, None) not in self._gradients:
                output = self._values[value, None]
                self._gradients[value, None] = torch.zeros_like(output, dtype=gradient.dtype)
            # A pass's loss is a mean over the pass, but this op's gradient is of a mean over the
            # batch.
            if p.program.plan.update == "pass":
                gradient = gradient / p.program.plan.micro_batches
            self._gradients[value, None][p.rows[value][m]] += gradient
        elif (value, m) in self._gradients:
            self._gradients[value, m] = self._gradients[value, m] + gradient
        else:
            self._gradients[value, m] = gradient

    def close(self) -> None:
        """Wait for moves that only send."""
        for (index, m, _), moving in self._moving.items():
            finish(moving, self._transport, self._form_of(self._p.program.exchanges[index, m]))


def _part(tensor: Tensor, *slices: slice) -> Tensor:
    """Return `tensor[slices]` without an operator if that is all of it."""
    if all(cut == slice(0, size) for cut, size in zip(slices, tensor.shape, strict=True)):
        return tensor
    return tensor[slices]
