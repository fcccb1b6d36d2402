"""Time every op in runs through the model: forward, loss, backward, update, as in a training step.

In a tight loop an op would find its weights in the cache; in a step, the whole model passes through
the cache between two uses. So all ops run in order, each on the part to be measured. An input is
the output of the previous op or, if the shapes differ, a new copy, as after an exchange. Parameters
are views of one flat buffer. Gradients are new tensors. All workers run the same ops at the same
time.

On a device that runs behind the host each pass is timed with the queue filled (`stopwatch`), so that
its time is the device's, and the host's time to launch it is recorded beside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from parallel.calibration.shapes import OpShape
from parallel.calibration.stopwatch import Begin, Stopwatch, open_stopwatch
from parallel.cluster.op_key import OpKey
from parallel.cluster.table import BACKWARD, FORWARD, PARAMETERS
from parallel.graph import INPUT, LOSS, Graph
from parallel.graph.box import Box, Span
from parallel.graph.ops import Context, Op, Part
from parallel.graph.ops.dropout import step_key
from parallel.program.precision import DTYPES
from parallel.runtime.communication.exchange import Format

UPDATE, ADD, COPY = "update", "add", "copy"
NOISE = 1 << 22
"""Random numbers that fill inputs, repeatedly: drawing new ones would take longer than most ops."""
FEWEST_ELEMENTS = 1024
"""Smaller tensors share a bucket in a step; alone, their times would be pure overhead."""


class Times(NamedTuple):
    """What a worker has measured: seconds by (op key, pass) and by (kind, number of elements)."""

    ops: list[tuple[tuple[OpKey, str], float]]
    counts: list[tuple[tuple[str, int], float]]
    launches: list[tuple[tuple[OpKey, str], float]]
    """The host's seconds to launch the passes in `ops`."""


class Recorder:
    """The times that one worker measures."""

    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch
        self._times = Times([], [], [])
        self.on = True
        """Whether to measure; otherwise the work runs as in a step."""

    def begin(self) -> Begin | None:
        """Begin to measure what follows."""
        return self._watch.begin() if self.on else None

    def op(self, key: OpKey, name: str, begin: Begin | None) -> None:
        """Record a pass of an op that began at `begin` and ends now."""
        if begin is None:
            return
        lap = self._watch.end(begin)
        if lap.seconds is not None:
            self._times.ops.append(((key, name), lap.seconds))
            self._times.launches.append(((key, name), lap.launch_s))

    def count(self, kind: str, count: int, begin: Begin | None) -> None:
        """Record an update, addition or copy of `count` elements that ends now."""
        if begin is None:
            return
        lap = self._watch.end(begin)
        if lap.seconds is not None:
            self._times.counts.append(((kind, count), lap.seconds))

    def collect(self) -> Times:
        """Return all times since the last call."""
        times, self._times = self._times, Times([], [], [])
        return times


@dataclass
class _Run:
    """Tensors of one run by op."""

    values: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    parameters: dict[str, dict[str, Tensor]] = field(default_factory=dict)


class OpTimer:
    """The model's ops on one worker, run on parts of any shape."""

    def __init__(
        self,
        graph: Graph,
        device: torch.device,
        precision: str,
        channels_last: bool,
        workers: int,
        watch: Stopwatch | None = None,
    ) -> None:
        """`watch`: another one than the device's."""
        self._graph, self._device, self._workers = graph, device, workers
        self._autocast, dtype = precision == "bf16", DTYPES[precision]
        self._weights = Format(dtype, channels_last, device)
        self._activations = Format(torch.bfloat16 if self._autocast else dtype, channels_last, device)
        self.times = Recorder(open_stopwatch(device) if watch is None else watch)
        self._flat: dict[tuple[str, str], Tensor] = {}
        self._momentum: dict[tuple[str, str], Tensor] = {}
        for op in graph:
            for name, shape in op.parameters.items():
                scale = math.sqrt(2 / max(1, math.prod(shape[1:])))
                flat = torch.randn(math.prod(shape), dtype=dtype, device=device).mul_(scale)
                self._flat[op.name, name], self._momentum[op.name, name] = flat, torch.zeros_like(flat)
        self._noise = torch.randn(NOISE, dtype=dtype, device=device)
        self._runs = 0
        self._key = torch.zeros((), dtype=torch.int64, device=device)
        self._constants_of: dict[tuple[str, tuple[Span, ...]], dict[str, Tensor]] = {}

    def run(
        self, shapes: Mapping[str, OpShape], after: Callable[[], None] = lambda: None, *, measure: bool = True
    ) -> None:
        """Run one part of each op in `shapes`, and `measure` the times, which `times` records.

        `after` is called after each pass of an op; its time is not recorded.
        """
        self._runs += 1
        self.times.on = measure
        ops = [self._graph[name] for name in self._graph.names if name in shapes]
        run = _Run()
        self._forward(ops, shapes, run, after)
        self._backward(ops, shapes, run, after)
        self._update(run.parameters)
        self._copy(run.values)

    def _forward(
        self, ops: Sequence[Op], shapes: Mapping[str, OpShape], run: _Run, after: Callable[[], None]
    ) -> None:
        self._key.fill_(step_key(0, self._runs))
        for op in ops:
            part = shapes[op.name].part
            inputs = [
                self._input(producer, box, run.values)
                for producer, box in zip(op.inputs, op.needs(part), strict=True)
            ]
            run.inputs[op.name] = inputs
            run.parameters[op.name] = self._parameters(op, op.parameter_boxes(part))
            rows = torch.arange(*part.box.spans[0], device=self._device)
            labels = [torch.zeros(part.box.shape[0], dtype=torch.int64, device=self._device)] * (
                op.name == LOSS
            )
            buffers = {op.name: self._buffers(op, op.buffer_boxes(part))}
            constants = {op.name: self._constants(op, part)}
            context = Context(True, self._key, rows, buffers, constants)
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
                begin = self.times.begin()
                run.values[op.name] = op.forward(part, [*inputs, *labels], run.parameters[op.name], context)
                self.times.op(shapes[op.name].key, FORWARD, begin)
            after()

    def _constants(self, op: Op, part: Part) -> dict[str, Tensor]:
        key = op.name, part.box.spans[1:]
        if key not in self._constants_of:
            self._constants_of[key] = op.constants(part, self._device)
        return self._constants_of[key]

    def _backward(
        self, ops: Sequence[Op], shapes: Mapping[str, OpShape], run: _Run, after: Callable[[], None]
    ) -> None:
        gradients: dict[str, Tensor] = {}
        for op in reversed(ops):
            output = run.values[op.name]
            if not output.requires_grad:
                continue
            gradient = gradients.get(op.name)
            if gradient is None or gradient.shape != output.shape:
                gradient = torch.full_like(output, 1e-3)
            gradient = gradient.to(output.dtype)
            wants_input = any(x.requires_grad for x in run.inputs[op.name])
            begin = self.times.begin()
            torch.autograd.backward([output], [gradient])
            self.times.op(shapes[op.name].key, BACKWARD if wants_input else PARAMETERS, begin)
            after()
            for producer, x in zip(op.inputs, run.inputs[op.name], strict=True):
                if x.grad is not None:
                    gradients[producer] = x.grad

    def _input(self, producer: str, box: Box, values: Mapping[str, Tensor]) -> Tensor:
        """Return an input: the producer's output if its shape fits, else a new tensor."""
        if producer == INPUT:
            return self._new(self._weights, box.shape)
        wide, trained = self._graph[producer].wide, producer in self._graph.trained_ops
        value = values.get(producer)
        if value is not None and tuple(value.shape) == box.shape:
            return value.detach().to(value.dtype if wide else self._activations.dtype).requires_grad_(trained)
        if wide:  # sums of a batch norm: ones have zero variance
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
        return {
            name: torch.ones(box.shape, dtype=self._weights.dtype, device=self._device)
            for name, box in boxes.items()
        }

    def _update(self, parameters: dict[str, dict[str, Tensor]]) -> None:
        """Add received shards and apply SGD to the shard of one among 1 to W workers."""
        for op in reversed(parameters):
            for name, parameter in parameters[op].items():
                if parameter.grad is None:
                    continue
                holders = 1 + self._runs % self._workers
                flat = self._weights.in_memory_order(parameter.grad).reshape(-1)
                count = flat.numel() // holders
                if count < FEWEST_ELEMENTS:
                    continue
                shard, momentum = self._flat[op, name].detach()[:count], self._momentum[op, name][:count]
                gradient = flat[:count]
                with torch.no_grad():
                    half = min(count, flat.numel() // 2)
                    begin = self.times.begin()
                    gradient[:half].add_(flat[flat.numel() - half :])
                    self.times.count(ADD, half, begin)
                    begin = self.times.begin()
                    sgd(
                        [shard],
                        [gradient],
                        [momentum],
                        fused=True,
                        lr=1e-6,
                        momentum=0.9,
                        weight_decay=0.0005,
                        dampening=0.0,
                        nesterov=False,
                        maximize=False,
                    )
                    self.times.count(UPDATE, count, begin)

    def _copy(self, values: Mapping[str, Tensor]) -> None:
        """Pack half of the channels of each output, as before a message."""
        for value in values.values():
            if value.dim() < 2 or value.shape[1] < 2 or value.dtype != self._activations.dtype:
                continue
            piece = self._activations.in_memory_order(value.detach()[:, : value.shape[1] // 2])
            if piece.numel() >= FEWEST_ELEMENTS:
                begin = self.times.begin()
                piece.contiguous()
                self.times.count(COPY, piece.numel(), begin)
