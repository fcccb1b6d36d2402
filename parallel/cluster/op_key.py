"""The key of a part in the table of times: the op's kind and settings, and the shapes of its boxes.

A part at the edge of the feature map reads less than one in the middle, but is padded to the same
size, so both have the same key. So do parts that differ only in having the bias.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any

from parallel.config import printable, require
from parallel.config.checks import shortened
from parallel.graph.ops import Op, Part, Shape

_COMMON = {field.name for field in dataclasses.fields(Op)} | {"number"}
_SHAPE = r"[1-9][0-9]{0,9}(?:x[1-9][0-9]{0,9}){0,4}"
_TEXT = re.compile(
    rf"({_SHAPE}(?:\+{_SHAPE})*) > ({_SHAPE}), ([0-9]{{1,18}}) parameters, ([0-9]{{1,18}}) multiply-adds"
)


@dataclass(frozen=True)
class OpKey:
    """The key of one entry of the table."""

    kind: str
    """Class of the op: Conv2d."""
    settings: str
    """Settings of the op, `kernel=11x11 stride=4x4 …`, and `cut` if the part is split in h or w."""
    inputs: tuple[Shape, ...]
    """Shapes of the boxes that the part reads."""
    output: Shape
    parameters: int
    """Elements of the weights, without biases."""
    multiply_adds: int
    """Multiply-adds of the forward pass."""

    @staticmethod
    def of(op: Op, part: Part) -> OpKey:
        """Return the key of a part."""
        settings = [
            f"{field.name}={_plain(getattr(op, field.name))}"
            for field in dataclasses.fields(op)
            if field.name not in _COMMON
        ]
        output = part.box.shape
        cut = output[2:] != op.domain[1:]
        inputs = tuple(_padded(op, output, box.shape) if cut else box.shape for box in op.needs(part))
        weights = sum(box.volume for box in op.parameter_boxes(part).values() if len(box.spans) > 1)
        return OpKey(
            type(op).__name__,
            " ".join([*settings, *(["cut"] if cut else [])]),
            inputs,
            output,
            weights,
            op.multiply_adds(part),
        )

    @property
    def head(self) -> str:
        """Kind and settings."""
        return f"{self.kind} {self.settings}".strip()

    @property
    def shapes(self) -> str:
        """Shapes, parameters and multiply-adds as text."""
        inputs = "+".join("x".join(map(str, shape)) for shape in self.inputs)
        output = "x".join(map(str, self.output))
        return f"{inputs} > {output}, {self.parameters} parameters, {self.multiply_adds} multiply-adds"

    @staticmethod
    def parse(head: str, shapes: str) -> OpKey:
        """Return the key with this `head` and `shapes`."""
        match = _TEXT.fullmatch(shapes)
        require(printable(head) == head, "measured.ops", head, "must not have control characters")
        if match is None:
            raise ValueError(
                f"measured.ops={shortened(shapes)} must be shapes such as "
                "`128x3x64x64 > 128x64x15x15, 23232 parameters, 669081600 multiply-adds`"
            )
        kind, _, settings = head.partition(" ")
        inputs, output, parameters, multiply_adds = match.groups()
        return OpKey(
            kind,
            settings,
            tuple(_shape(part) for part in inputs.split("+")),
            _shape(output),
            int(parameters),
            int(multiply_adds),
        )

    def setting(self, name: str, default: float) -> float:
        """Return the product of the numbers of a setting (kernel=11x11: 121), or `default`."""
        match = re.search(rf"\b{name}=([\dx.]+)", self.settings)
        return default if match is None else math.prod(float(part) for part in match[1].split("x"))

    @property
    def elements_in(self) -> int:
        """Elements of all inputs."""
        return sum(math.prod(shape) for shape in self.inputs)

    @property
    def elements_out(self) -> int:
        """Elements of the output."""
        return math.prod(self.output)


def _padded(op: Any, output: Shape, box: Shape) -> Shape:
    """Return the shape of an input box, with the padding if the op has windows."""
    if not hasattr(op, "kernel") or not hasattr(op, "stride"):
        return box
    sides = ((output[i + 2] - 1) * op.stride[i] + op.kernel[i] for i in range(2))
    return (*box[:2], *sides)


def _plain(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _shape(text: str) -> Shape:
    return tuple(int(size) for size in text.split("x"))
