"""Element-wise ops: every part needs exactly its own box."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.graph.ops.dropout import dropout_mask, mask_columns
from parallel.graph.ops.op import Context, Op, Part, no_rule


@dataclass(frozen=True, kw_only=True)
class ReLU(Op):
    """max(x, 0)."""

    @classmethod
    def from_layer(cls, layer: nn.ReLU, name: str, **common: Any) -> ReLU:
        """Build the op of an `nn.ReLU`."""
        return cls(name=name, **common)

    @classmethod
    def from_call(
        cls, arguments: Sequence[object], options: Mapping[str, object], name: str, **common: Any
    ) -> ReLU:
        """Build the op of a call such as `torch.relu(x)`."""
        return cls(name=name, **common)

    @property
    def dims(self) -> str:
        return "nchw"[: len(self.shape) + 1]

    def forward(
        self, part: Part, xs: Sequence[Tensor], parameters: Mapping[str, Tensor], context: Context
    ) -> Tensor:
        return F.relu(xs[0])


@dataclass(frozen=True, kw_only=True)
class Add(Op):
    """Sum of two tensors of the same shape."""

    @classmethod
    def from_call(
        cls, arguments: Sequence[object], options: Mapping[str, object], name: str, **common: Any
    ) -> Add:
        """Build the op of a call such as `x + y`."""
        if arguments or options or len(common["inputs"]) != 2 or len(set(common["input_shapes"])) != 1:
            raise no_rule(name, "an addition of anything but two tensors of the same shape")
        return cls(name=name, **common)

    @property
    def dims(self) -> str:
        return "nchw"[: len(self.shape) + 1]

    def forward(
        self, part: Part, xs: Sequence[Tensor], parameters: Mapping[str, Tensor], context: Context
    ) -> Tensor:
        return xs[0] + xs[1]


@dataclass(frozen=True, kw_only=True)
class Dropout(Op):
    """Zero each element with probability p and scale the rest by 1/(1−p); the mask does not depend
    on the split."""

    p: float
    number: int = field(init=False, repr=False, compare=False)
    """Hash of the name, so that each op has its own masks; precomputed, as torch.compile cannot
    trace zlib."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "number", zlib.crc32(self.name.encode()))

    @classmethod
    def from_layer(cls, layer: nn.Dropout, name: str, **common: Any) -> Dropout:
        """Build the op of an `nn.Dropout`."""
        return cls(name=name, **common, p=layer.p)

    @property
    def dims(self) -> str:
        return "nchw"[: len(self.shape) + 1]

    def kept_bytes(self, part: Part, itemsize: int) -> int:
        return 2 * part.box.volume * itemsize  # the output and the mask

    def constants(self, part: Part, device: torch.device) -> dict[str, Tensor]:
        return {"columns": mask_columns(part.box, self.shape, device)} if self.p > 0.0 else {}

    def forward(
        self, part: Part, xs: Sequence[Tensor], parameters: Mapping[str, Tensor], context: Context
    ) -> Tensor:
        x = xs[0]
        if not context.training or self.p == 0.0:
            return x
        return x * dropout_mask(
            key=context.key,
            op=self.number,
            samples=context.samples,
            columns=context.constants[self.name]["columns"],
            p=self.p,
            dtype=x.dtype,
        )
