"""Fully connected layer. It may be split in n, c, k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from parallel.graph.box import Box
from parallel.graph.ops.op import Context, Op, Part, Shape


@dataclass(frozen=True, kw_only=True)
class Linear(Op):
    """y = x Wᵀ + b. A k split gives partial sums; the first one includes the bias."""

    bias: bool

    @classmethod
    def from_layer(cls, layer: nn.Linear, name: str, **common: Any) -> Linear:
        """Build the op of an `nn.Linear`."""
        return cls(name=name, **common, bias=layer.bias is not None)

    @property
    def dims(self) -> str:
        return "nck"

    @property
    def parameters(self) -> dict[str, Shape]:
        weight = (self.shape[0], self.input_shapes[0][0])
        return {"weight": weight, "bias": (self.shape[0],)} if self.bias else {"weight": weight}

    @property
    def rounds_parameters(self) -> bool:
        return True

    def extent(self, dim: str) -> int:
        return self.input_shapes[0][0] if dim == "k" else super().extent(dim)

    def needs(self, part: Part) -> tuple[Box, ...]:
        return (Box((part.box.spans[0], part.k or (0, self.extent("k")))),)

    def parameter_boxes(self, part: Part) -> dict[str, Box]:
        c, k = part.box.spans[1], part.k or (0, self.extent("k"))
        boxes = {"weight": Box((c, k))}
        if self.bias and k[0] == 0:
            boxes["bias"] = Box((c,))
        return boxes

    def multiply_adds(self, part: Part) -> int:
        k = part.k or (0, self.extent("k"))
        return part.box.volume * (k[1] - k[0])

    def forward(
        self, part: Part, xs: Sequence[Tensor], parameters: Mapping[str, Tensor], context: Context
    ) -> Tensor:
        return F.linear(xs[0], parameters["weight"], parameters.get("bias"))
