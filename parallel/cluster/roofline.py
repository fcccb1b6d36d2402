"""Compute times from a data sheet: the roofline model (Williams et al. 2009), op by op.

    pass     = max(2 · multiply-adds / (peak · efficiency), bytes / memory bandwidth) + overhead of an op
    forward  = one pass: reads inputs and parameters, writes the output and what backward will need
    backward = a pass for the input's gradient (reads the output's gradient, parameters or what forward kept; writes
               the input's) + one for the parameters' (reads the output's gradient and the inputs; writes theirs)
    update   = five accesses of a number (weight, gradient, momentum read; weight, momentum written) / bandwidth
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from parallel.config import PRECISIONS, require, require_one_of
from parallel.graph.ops import Op, Part
from parallel.graph.ops.pool import AdaptiveAvgPool2d
from parallel.program.precision import ACTIVATION_BYTES, WEIGHT_BYTES

UPDATE_ACCESSES, ADD_ACCESSES, COPY_ACCESSES = 5, 3, 2


@dataclass(frozen=True)
class Roofline:
    """Times of one worker, from four numbers of its hardware."""

    peak: Mapping[str, float] = field(hash=False)
    """FLOP/s by precision; a multiply-add is two."""
    efficiency: Mapping[str, float] = field(hash=False)
    """Share of the peak that an op reaches, by kind (the class's name: Conv2d, Linear); 1 where not given."""
    memory_bandwidth: float
    """Bytes per second."""
    op_overhead_s: float
    """Of launching a pass of an op."""

    def __post_init__(self) -> None:
        require(len(self.peak) > 0, "peak", dict(self.peak), "must have a precision")
        for precision, value in self.peak.items():
            require_one_of("peak", precision, PRECISIONS)
            require(value > 0, f"peak.{precision}", value, "must be positive")
        for kind, value in self.efficiency.items():
            require(0 < value <= 1, f"efficiency.{kind}", value, "must be above 0 and at most 1")
        require(self.memory_bandwidth > 0, "memory_bandwidth", self.memory_bandwidth, "must be positive")
        require(self.op_overhead_s >= 0, "op_overhead_s", self.op_overhead_s, "must not be negative")

    def precisions(self) -> tuple[str, ...]:
        return tuple(self.peak)

    def forward_s(self, op: Op, part: Part, precision: str) -> float:
        if is_view(op):
            return 0.0
        activation = ACTIVATION_BYTES[precision]
        touched = _inputs(op, part) * activation + op.kept_bytes(part, activation)
        return self._pass_s(op, part, touched + _parameter_bytes(op, part, precision), precision)

    def backward_s(self, op: Op, part: Part, precision: str, input_gradient: bool) -> float:
        if is_view(op):
            return 0.0
        activation, inputs, seconds = ACTIVATION_BYTES[precision], _inputs(op, part), 0.0
        output, parameters = part.box.volume * activation, _parameter_bytes(op, part, precision)
        if input_gradient:
            read = parameters if parameters else op.kept_bytes(part, activation)
            seconds += self._pass_s(op, part, output + read + inputs * activation, precision)
        if parameters:
            seconds += self._pass_s(op, part, output + inputs * activation + parameters, precision)
        return seconds

    def update_s(self, parameters: int, precision: str) -> float:
        return self._touch_s(UPDATE_ACCESSES * parameters * WEIGHT_BYTES[precision])

    def add_s(self, elements: int, precision: str) -> float:
        return self._touch_s(ADD_ACCESSES * elements * WEIGHT_BYTES[precision])

    def copy_s(self, elements: int, precision: str) -> float:
        return self._touch_s(COPY_ACCESSES * elements * ACTIVATION_BYTES[precision])

    def _touch_s(self, nbytes: float) -> float:
        return nbytes / self.memory_bandwidth + self.op_overhead_s if nbytes else 0.0

    def _pass_s(self, op: Op, part: Part, nbytes: float, precision: str) -> float:
        require(precision in self.peak, "trainer.precision", precision,
                f"has no peak in this cluster; it has {', '.join(self.peak)}")
        flops = self.peak[precision] * self.efficiency.get(type(op).__name__, 1.0)
        return max(2 * op.multiply_adds(part) / flops, nbytes / self.memory_bandwidth) + self.op_overhead_s


def is_view(op: Op) -> bool:
    """Whether the op does nothing at all."""
    return isinstance(op, AdaptiveAvgPool2d) and op.identity


def _inputs(op: Op, part: Part) -> int:
    """Numbers that a part reads from other ops."""
    return sum(box.volume for box in op.needs(part))


def _parameter_bytes(op: Op, part: Part, precision: str) -> int:
    """Read from memory; where the activations are smaller, weights are also written and read as such a copy."""
    weight, activation = WEIGHT_BYTES[precision], ACTIVATION_BYTES[precision]
    itemsize = weight + (2 * activation if activation < weight else 0)
    return sum(box.volume for box in op.parameter_boxes(part).values()) * itemsize
