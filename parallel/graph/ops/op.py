"""What every op has in common: names, shapes, the dims in which it may be split, and the rules.

Shapes are those of one sample; boxes have the sample dim in front: [n, c, h, w] or [n, c].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from parallel.graph.box import Box, Span

Shape = tuple[int, ...]

DIMS = "nckhw"
"""n sample; c output channel or feature; k input channel or feature (partial sums); h, w height and width."""


@dataclass(frozen=True)
class Part:
    """What one worker computes of an op: a box of what its layout cuts and, of the inputs, a span of the reduction."""

    box: Box
    """Of the output, [n, *op.domain]; of an op that sums over samples, of what it sums (`Op.output_box`)."""
    k: Span | None = None
    """None: all of the reduction. Otherwise the result is a partial sum."""


@dataclass(frozen=True)
class Context:
    """What an op's computation may depend on besides its inputs and parameters."""

    training: bool
    key: Tensor
    """Hash of seed and step, `dropout.step_key`: what makes each step's dropout masks its own."""
    samples: Tensor
    """Position of each row of the inputs in the global batch: int64 [n]."""
    buffers: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """Per op, the part of its buffers that this worker holds; training updates them in place."""


@dataclass(frozen=True, kw_only=True)
class Op:
    """One node of the graph. A subclass is an entry of the table in `parallel.graph.ops`."""

    name: str
    inputs: tuple[str, ...]
    """Names of the producers; `graph.INPUT` is the batch of images."""
    input_shapes: tuple[Shape, ...]
    shape: Shape

    @property
    def dims(self) -> str:
        """The dims in which this op may be split."""
        return DIMS[:2]

    @property
    def domain(self) -> Shape:
        """Sizes of c, h, w, as far as there are: what a layout cuts. The output's shape, unless the op sums it away."""
        return self.shape

    @property
    def sums_over(self) -> str:
        """The dims in which a split gives partial sums."""
        return "k"

    @property
    def whole_batch(self) -> bool:
        """Whether the output depends on all samples together, so that the batch cannot come in micro-batches."""
        return False

    @property
    def least_samples(self) -> int:
        """The smallest batch that the op can train on."""
        return 1

    @property
    def parameters(self) -> dict[str, Shape]:
        """Shape of each parameter."""
        return {}

    @property
    def buffers(self) -> dict[str, Shape]:
        """Shape of each tensor that training updates without a gradient, and evaluation reads."""
        return {}

    def extent(self, dim: str) -> int:
        """Size of a dim other than n."""
        return self.domain["chw".index(dim)]

    def output_box(self, part: Part) -> Box:
        """The box of the output that the part gives."""
        return part.box

    def needs(self, part: Part) -> tuple[Box, ...]:
        """Per input, the box that the part is computed from."""
        return (part.box,) * len(self.inputs)

    def parameter_boxes(self, part: Part) -> dict[str, Box]:
        """Per parameter that the part uses, the box of it."""
        return {}

    def buffer_boxes(self, part: Part) -> dict[str, Box]:
        """Per buffer that the part uses, the box of it."""
        return {}

    @property
    def wide(self) -> bool:
        """Whether the output travels in float64 whatever the precision."""
        return False

    def multiply_adds(self, part: Part) -> int:
        """Multiply-adds of the forward pass; zero where they do not count (element-wise ops)."""
        return 0

    def kept_bytes(self, part: Part, itemsize: int) -> int:
        """Bytes that the forward pass leaves for backward, at most, inputs not counted: the output, unless more."""
        return part.box.volume * itemsize

    def forward(self, part: Part, xs: Sequence[Tensor], parameters: Mapping[str, Tensor], context: Context) -> Tensor:
        """The part's output from its inputs' boxes; rows may be those of several micro-batches."""
        raise NotImplementedError

    @property
    def parameter_count(self) -> int:
        return sum(math.prod(shape) for shape in self.parameters.values())


def window(out: Span, out_size: int, size: int, kernel: int, stride: int, padding: int) -> tuple[Span, tuple[int, int]]:
    """Input span that the output span `out` of a sliding window reads, and the padding left on its two sides.

    A span that reaches the output's edge reaches the input's, too, so that unsplit ops need exactly their input.
    """
    start, stop = out[0] * stride - padding, (out[1] - 1) * stride - padding + kernel
    # Where the padding is as large as the kernel, windows may lie in it entirely: they read an empty span.
    before, after = max(0, min(-start, stop - start)), max(0, min(stop - size, stop - start))
    first = 0 if out[0] == 0 else min(size, max(0, start))
    last = size if out[1] == out_size else max(0, min(size, stop))
    return (first, last), (before, after)
