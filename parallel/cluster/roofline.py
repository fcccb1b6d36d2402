"""Compute times from a data sheet: the roofline model (Williams et al. 2009) applied to each op.

pass     = max(2 · multiply-adds / (peak · efficiency), bytes / memory bandwidth) + op overhead
forward  = one pass: reads inputs and parameters, writes the output and the saved tensors
backward = one pass for the input's gradient: reads the output's gradient, and parameters or
           saved tensors; writes the input's gradient
         + one pass for the parameters' gradient: reads the output's gradient and the inputs;
           writes the parameters' gradient
update   = 5 accesses per element / memory bandwidth: reads weight, gradient and momentum; writes
           weight and momentum
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from parallel.cluster.units import MOST_RATE
from parallel.config import PRECISIONS, require, require_number, require_one_of
from parallel.config.checks import MOST_SECONDS
from parallel.graph.ops import Op, Part
from parallel.graph.ops.pool import AdaptiveAvgPool2d
from parallel.program.precision import ACTIVATION_BYTES, WEIGHT_BYTES

UPDATE_ACCESSES, ADD_ACCESSES, COPY_ACCESSES = 5, 3, 2
"""Memory accesses per element: an addition reads two and writes one, a copy reads and writes
one."""

LEAST_EFFICIENCY = 1e-6
MOST_EFFICIENCY = {"Conv2d": 10.0}
"""Upper bound of an op's efficiency by class; 1 for all others.

Multiply-adds are those of the direct convolution. Winograd's algorithm needs fewer: F(2×2, 3×3) 2.25
times, F(4×4, 3×3) 4 times, F(4×4, 5×5) 6.25 times (Lavin and Gray 2016). FFTs save about as much. So
convolutions really exceed 100 % of the peak; an efficiency of more than 1,000 % is a mistake.
"""


@dataclass(frozen=True)
class Roofline:
    """Compute times of one worker, computed from four properties of its hardware."""

    peak: Mapping[str, float] = field(hash=False)
    """Peak FLOP/s by precision; a multiply-add counts as two."""
    efficiency: Mapping[str, float] = field(hash=False)
    """Share of the peak that an op reaches, by its class (Conv2d, Linear); default 1. Above 1 where an
    algorithm needs fewer multiplications than the direct one (`MOST_EFFICIENCY`)."""
    memory_bandwidth: float
    """Memory bandwidth in bytes per second."""
    op_overhead_s: float
    """Time to launch a pass of an op."""

    def __post_init__(self) -> None:
        require(len(self.peak) > 0, "peak", dict(self.peak), "must have a precision")
        for precision, value in self.peak.items():
            require_one_of("peak", precision, PRECISIONS)
            require_number(f"peak.{precision}", value, 1, MOST_RATE)
        for kind, value in self.efficiency.items():
            require_number(f"efficiency.{kind}", value, LEAST_EFFICIENCY, MOST_EFFICIENCY.get(kind, 1.0))
        require_number("memory_bandwidth", self.memory_bandwidth, 1, MOST_RATE)
        require_number("op_overhead_s", self.op_overhead_s, 0, MOST_SECONDS)

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
        require(
            precision in self.peak,
            "trainer.precision",
            precision,
            f"has no peak in this cluster; it has {', '.join(self.peak)}",
        )
        flops = self.peak[precision] * self.efficiency.get(type(op).__name__, 1.0)
        return max(2 * op.multiply_adds(part) / flops, nbytes / self.memory_bandwidth) + self.op_overhead_s


def is_view(op: Op) -> bool:
    """Return whether the op only views its input and computes nothing."""
    return isinstance(op, AdaptiveAvgPool2d) and op.identity


def _inputs(op: Op, part: Part) -> int:
    """Return the elements that a part reads from other ops."""
    return sum(box.volume for box in op.needs(part))


def _parameter_bytes(op: Op, part: Part, precision: str) -> int:
    """Return the bytes read for parameters, with those of a copy in bf16 if there is one."""
    weight, activation = WEIGHT_BYTES[precision], ACTIVATION_BYTES[precision]
    itemsize = weight + (2 * activation if activation < weight else 0)
    return sum(box.volume for box in op.parameter_boxes(part).values()) * itemsize
