"""The base class of all ops: names, shapes, the dims in which an op may be split, and its rules.

Shapes are those of one sample; boxes have the sample dim in front: [n, c, h, w] or [n, c].

    dim   meaning                                     a split in it
    n     sample                                      data parallelism
    c     output channel or feature                   splits the parameters
    k     input channel or feature (reduction)        splits the parameters, gives partial sums
    h w   height and width of the feature map         reads a halo from neighbours
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from parallel.graph.box import Box, Span

Shape = tuple[int, ...]

DIMS = "nckhw"
"""All dims, in the order of degrees and parts."""


@dataclass(frozen=True)
class Part:
    """The share of an op that one worker computes: a box of its domain, and a span of its
    reduction."""

    box: Box
    """Box of the op's domain, [n, *op.domain]: of the output, unless the op sums over samples
    (`Op.output_box`)."""
    k: Span | None = None
    """Span of the reduction dim; the result is then a partial sum. None: the whole reduction."""


@dataclass(frozen=True)
class Context:
    """Everything that an op may read besides its inputs and parameters."""

    training: bool
    key: Tensor
    """Hash of seed and step (`dropout.step_key`), an int64 scalar, which gives every step its own
    dropout masks."""
    samples: Tensor
    """Position of each row of the inputs in the global batch: int64 [n]."""
    buffers: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """This worker's part of each op's buffers; training updates them in place."""
    constants: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """`Op.constants` of each op."""


@dataclass(frozen=True, kw_only=True)
class Op:
    """One node of the graph. Each kind of op is a subclass with an entry in the tables of
    `parallel.graph.ops`."""

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
        """Sizes of c, h, w that a layout cuts: the output's shape, unless the op reduces those
        dims."""
        return self.shape

    @property
    def sums_over(self) -> str:
        """The dims in which a split gives partial sums."""
        return "k"

    @property
    def whole_batch(self) -> bool:
        """Whether the output depends on all samples together, which rules out micro-batches."""
        return False

    @property
    def least_samples(self) -> int:
        """Smallest batch that the op can train on."""
        return 1

    @property
    def parameters(self) -> dict[str, Shape]:
        """Shape of each parameter."""
        return {}

    @property
    def buffers(self) -> dict[str, Shape]:
        """Shape of each tensor that training updates without a gradient and evaluation reads."""
        return {}

    def extent(self, dim: str) -> int:
        """Return the size of dim `dim`, which is not n."""
        return self.domain["chw".index(dim)]

    def output_box(self, part: Part) -> Box:
        """Return the box of the output that the part computes."""
        return part.box

    def needs(self, part: Part) -> tuple[Box, ...]:
        """Return, for each input, the box that the part reads."""
        return (part.box,) * len(self.inputs)

    def parameter_boxes(self, part: Part) -> dict[str, Box]:
        """Return the box of each parameter that the part reads."""
        return {}

    def buffer_boxes(self, part: Part) -> dict[str, Box]:
        """Return the box of each buffer that the part reads."""
        return {}

    def constants(self, part: Part, device: torch.device) -> dict[str, Tensor]:
        """Return the tensors that forward reads and that depend on the part only, without its span in
        n: they are computed once per run."""
        return {}

    @property
    def fuses(self) -> str | None:
        """The input that forward computes itself, in one kernel with the output, if it is not among
        `xs`. Lowering decides it (`Program.fused`), where every worker holds what it needs of that
        input."""
        return None

    @property
    def wide(self) -> bool:
        """Whether the output is exchanged in float64 with any precision."""
        return False

    @property
    def rounds_parameters(self) -> bool:
        """Whether forward reads its parameters rounded to the dtype of activations, as autocast does for
        convolutions and matrix products."""
        return False

    def multiply_adds(self, part: Part) -> int:
        """Return the multiply-adds of the part's forward pass; zero for element-wise ops."""
        return 0

    def kept_bytes(self, part: Part, itemsize: int) -> int:
        """Return an upper bound of the bytes that forward keeps for backward, inputs not
        counted."""
        return part.box.volume * itemsize

    def forward(
        self, part: Part, xs: Sequence[Tensor], parameters: Mapping[str, Tensor], context: Context
    ) -> Tensor:
        """Return the part's output, computed from the boxes of its inputs. Rows may come from
        several micro-batches."""
        raise NotImplementedError

    @property
    def parameter_count(self) -> int:
        """Elements of all parameters."""
        return sum(math.prod(shape) for shape in self.parameters.values())


def pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    """Return a layer's size in h and w, which may be given as one number."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def no_rule(name: str, what: str) -> ValueError:
    """Return the error for a layer or call that the op's rule does not cover."""
    return ValueError(f"layer {name}: {what} has no rule in parallel/graph/ops; add one there")


def window(
    out: Span, out_size: int, size: int, kernel: int, stride: int, padding: int
) -> tuple[Span, tuple[int, int]]:
    """Return the input span that the output span `out` of a sliding window reads, and the padding
    on its two sides.

    This is where halos come from: neighbouring output spans read overlapping input spans. A span at
    the edge of the output reaches the edge of the input, so that an op that is not split needs
    exactly its input.
    """
    start, stop = out[0] * stride - padding, (out[1] - 1) * stride - padding + kernel
    # With padding as large as the kernel, a window may lie entirely in the padding and read an
    # empty span.
    before, after = max(0, min(-start, stop - start)), max(0, min(stop - size, stop - start))
    first = 0 if out[0] == 0 else min(size, max(0, start))
    last = size if out[1] == out_size else max(0, min(size, stop))
    return (first, last), (before, after)


def windows(
    part: Part,
    shape: Shape,
    input_shape: Shape,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> list[tuple[Span, tuple[int, int]]]:
    """Return `window` in height and in width for a part of an output of this shape [c, h, w]."""
    return [
        window(part.box.spans[i + 2], shape[i + 1], input_shape[i + 1], kernel[i], stride[i], padding[i])
        for i in range(2)
    ]
