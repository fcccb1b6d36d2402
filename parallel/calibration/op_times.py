"""Runs through the model with the time of every op: forward, loss, backward, update, as a step does.

An op that is measured in a tight loop finds its weights in the cache; in a step the whole model has passed through it
since. So the works are measured in runs through all ops in order, each with the part that is to be measured: inputs
are what the op before has just written, or if the shapes do not fit a fresh copy, which is what an exchange leaves;
parameters are views of one flat buffer, gradients are new, and every worker does the same at the same time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from parallel.calibration.shapes import Need
from parallel.cluster.op_key import OpKey
from parallel.cluster.table import BACKWARD, FORWARD, PARAMETERS
from parallel.graph import INPUT, LOSS, Graph
from parallel.graph.box import Box
from parallel.graph.ops import Context, Op
from parallel.graph.ops.dropout import step_key
from parallel.program.precision import DTYPES
from parallel.runtime.communication.exchange import Format

UPDATE, ADD, COPY = "update", "add", "copy"
NOISE = 1 << 22
"""Random numbers that inputs are filled with, again and again: making new ones would take longer than most ops."""
FEWEST_ELEMENTS = 1024
"""Smaller parameters share a bucket with others; their own times are all overhead."""


class Stopwatch:
    """Time stamps on the host's clock, or on a CUDA device's stream."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._cuda = device, device.type == "cuda"

    def mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, begin: Any, end: Any) -> float:
        """Between two marks; on CUDA waits for the device first."""
        if not self._cuda:
            return end - begin
        end.synchronize()
        return begin.elapsed_time(end) / 1000


class Times:
    """What one worker measured: seconds by op key and pass, and by count."""

    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch
        self._ops: list[tuple[OpKey, str, Any, Any]] = []
        self._counts: list[tuple[str, int, Any, Any]] = []

    def op(self, op_key: OpKey, name: str, begin: Any) -> None:
        self._ops.append((op_key, name, begin, self._watch.mark()))

    def count(self, kind: str, count: int, begin: Any) -> None:
        self._counts.append((kind, count, begin, self._watch.mark()))

    def collect(self) -> tuple[list[tuple[tuple[OpKey, str], float]], list[tuple[tuple[str, int], float]]]:
        """All times since the last call."""
        ops = [((op_key, name), self._watch.seconds(begin, end)) for op_key, name, begin, end in self._ops]
        counts = [((kind, count), self._watch.seconds(begin, end)) for kind, count, begin, end in self._counts]
        self._ops, self._counts = [], []
        return ops, counts


class Chain:
    """The model's ops on one worker, whole or in parts."""

    def __init__(self, graph: Graph, device: torch.device, precision: str, channels_last: bool, workers: int) -> None:
        self._graph, self._device, self._workers = graph, device, workers
        self._autocast, dtype = precision == "bf16", DTYPES[precision]
        self._weights = Format(dtype, channels_last, device)
        self._activations = Format(torch.bfloat16 if self._autocast else dtype, channels_last, device)
        self._watch = Stopwatch(device)
        self.times = Times(self._watch)
        self._flat: dict[tuple[str, str], Tensor] = {}
        self._momentum: dict[tuple[str, str], Tensor] = {}
        for op in graph:
            for name, shape in op.parameters.items():
                scale = math.sqrt(2 / max(1, math.prod(shape[1:])))
                flat = torch.randn(math.prod(shape), dtype=dtype, device=device).mul_(scale)
                self._flat[op.name, name], self._momentum[op.name, name] = flat, torch.zeros_like(flat)
        self._trained = graph.trained_ops
        self._noise = torch.randn(NOISE, dtype=dtype, device=device)
        self._turn = 0

    def run(self, needs: Mapping[str, Need], after: Callable[[], None] = lambda: None) -> None:
        """One run with a part of each op that has a need; `times` has what it took. `after` each pass of an op, not
        timed, something else may be done."""
        self._turn += 1
        key = step_key(0, self._turn, self._device)
        values: dict[str, Tensor] = {}
        leaves: dict[str, list[Tensor]] = {}
        held: dict[str, dict[str, Tensor]] = {}
        ops = [self._graph[name] for name in self._graph.names if name in needs]
        for op in ops:
            part, op_key = needs[op.name].part, needs[op.name].key
            xs = [self._input(producer, box, values) for producer, box in zip(op.inputs, op.needs(part), strict=True)]
            leaves[op.name] = xs
            held[op.name] = self._parameters(op, op.parameter_boxes(part))
            rows = torch.arange(*part.box.spans[0], device=self._device)
            labels = [torch.zeros(part.box.shape[0], dtype=torch.int64, device=self._device)] * (op.name == LOSS)
            context = Context(True, key, rows, {op.name: self._buffers(op, op.buffer_boxes(part))})
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
                begin = self._watch.mark()
                values[op.name] = op.forward(part, [*xs, *labels], held[op.name], context)
                self.times.op(op_key, FORWARD, begin)
            after()
        gradients: dict[str, Tensor] = {}
        for op in reversed(ops):
            y = values[op.name]
            if not y.requires_grad:
                continue
            gradient = gradients.get(op.name)
            if gradient is None or gradient.shape != y.shape:
                gradient = torch.full_like(y, 1e-3)
            gradient = gradient.to(y.dtype)
            trained = any(x.requires_grad for x in leaves[op.name])
            begin = self._watch.mark()
            torch.autograd.backward([y], [gradient])
            self.times.op(needs[op.name].key, BACKWARD if trained else PARAMETERS, begin)
            after()
            for producer, x in zip(op.inputs, leaves[op.name], strict=True):
                if x.grad is not None:
                    gradients[producer] = x.grad
        self._update(held)
        self._copy(values)

    def _input(self, producer: str, box: Box, values: Mapping[str, Tensor]) -> Tensor:
        """What an op reads: the producer's output if it is of that shape, else what an exchange would bring."""
        if producer == INPUT:
            return self._new(self._weights, box.shape)
        wide, trained = self._graph[producer].wide, producer in self._trained
        value = values.get(producer)
        if value is not None and tuple(value.shape) == box.shape:
            return value.detach().to(value.dtype if wide else self._activations.dtype).requires_grad_(trained)
        if wide:  # sums: of one value, 1, so that the variance is none
            return torch.ones(box.shape, dtype=torch.float64, device=self._device, requires_grad=trained)
        return self._new(self._activations, box.shape).requires_grad_(trained)

    def _new(self, form: Format, shape: tuple[int, ...]) -> Tensor:
        flat = torch.empty(math.prod(shape), dtype=form.dtype, device=self._device)
        for begin in range(0, flat.numel(), NOISE):
            piece = flat[begin : begin + NOISE]
            piece.copy_(self._noise[: piece.numel()])
        return form.in_logical_order(flat.view(form.memory_shape(shape)))

    def _parameters(self, op: Op, boxes: Mapping[str, Box]) -> dict[str, Tensor]:
        held = {}
        for name, box in boxes.items():
            view = self._flat[op.name, name][: box.volume].view(self._weights.memory_shape(box.shape))
            held[name] = self._weights.in_logical_order(view).requires_grad_()
        return held

    def _buffers(self, op: Op, boxes: Mapping[str, Box]) -> dict[str, Tensor]:
        return {name: torch.ones(box.shape, dtype=self._weights.dtype, device=self._device)
                for name, box in boxes.items()}

    def _update(self, held: dict[str, dict[str, Tensor]]) -> None:
        """Adding received shards and SGD, each on the shard that 1 to W workers would leave this one."""
        for op in reversed(held):
            for name, parameter in held[op].items():
                if parameter.grad is None:
                    continue
                holders = 1 + self._turn % self._workers
                flat = self._weights.in_memory_order(parameter.grad).reshape(-1)
                count = flat.numel() // holders
                if count < FEWEST_ELEMENTS:
                    continue
                shard, momentum = self._flat[op, name].detach()[:count], self._momentum[op, name][:count]
                gradient = flat[:count]
                with torch.no_grad():
                    half = min(count, flat.numel() // 2)
                    begin = self._watch.mark()
                    gradient[:half].add_(flat[flat.numel() - half :])
                    self.times.count(ADD, half, begin)
                    begin = self._watch.mark()
                    sgd([shard], [gradient], [momentum], fused=True, lr=1e-6, momentum=0.9, weight_decay=0.0005,
                        dampening=0.0, nesterov=False, maximize=False)
                    self.times.count(UPDATE, count, begin)

    def _copy(self, values: Mapping[str, Tensor]) -> None:
        """Packing: half of the channels of what was computed, made contiguous to be sent."""
        for value in values.values():
            if value.dim() < 2 or value.shape[1] < 2 or value.dtype != self._activations.dtype:
                continue
            piece = self._activations.in_memory_order(value.detach()[:, : value.shape[1] // 2])
            if piece.numel() >= FEWEST_ELEMENTS:
                begin = self._watch.mark()
                piece.contiguous()
                self.times.count(COPY, piece.numel(), begin)
