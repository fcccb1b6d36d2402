"""Element-wise ops: every part needs exactly its own box."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from parallel.graph.ops.dropout import dropout_mask
from parallel.graph.ops.op import Context, Op, Part


@dataclass(frozen=True, kw_only=True)
class ReLU(Op):
    """max(x, 0)."""

    @property
    def dims(self) -> str:
        return "nchw"[: len(self.shape) + 1]

    def forward(self, part: Part, xs: Sequence[Tensor], parameters: Mapping[str, Tensor], context: Context) -> Tensor:
        return F.relu(xs[0])


@dataclass(frozen=True, kw_only=True)
class Add(Op):
    """The sum of two tensors of the same shape."""

    @property
    def dims(self) -> str:
        return "nchw"[: len(self.shape) + 1]

    def forward(self, part: Part, xs: Sequence[Tensor], parameters: Mapping[str, Tensor], context: Context) -> Tensor:
        return xs[0] + xs[1]


@dataclass(frozen=True, kw_only=True)
class Dropout(Op):
    """Zero each element with probability p and scale the rest by 1/(1−p), the same ones whatever the split."""

    p: float
    number: int = field(init=False, repr=False, compare=False)
    """What tells this op's masks from others'. Made beforehand: torch.compile can't trace zlib."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "number", zlib.crc32(self.name.encode()))

    @property
    def dims(self) -> str:
        return "nchw"[: len(self.shape) + 1]

    def kept_bytes(self, part: Part, itemsize: int) -> int:
        return 2 * part.box.volume * itemsize  # the output and the mask

    def forward(self, part: Part, xs: Sequence[Tensor], parameters: Mapping[str, Tensor], context: Context) -> Tensor:
        x = xs[0]
        if not context.training or self.p == 0.0:
            return x
        return x * dropout_mask(
            key=context.key, op=self.number, samples=context.samples, box=part.box, shape=self.shape,
            p=self.p, dtype=x.dtype,
        )
