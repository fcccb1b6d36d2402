"""Pooling: maximum over windows that may overlap, and the adaptive average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from parallel.graph.box import Box, Span
from parallel.graph.ops.op import Context, Op, Part, no_rule, pair, windows


@dataclass(frozen=True, kw_only=True)
class MaxPool2d(Op):
    """Maximum over sliding windows; an h or w split reads the overlap as a halo."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    @classmethod
    def from_layer(cls, layer: nn.MaxPool2d, name: str, **common: Any) -> MaxPool2d:
        """Build the op of an `nn.MaxPool2d`."""
        if pair(layer.dilation) != (1, 1) or layer.ceil_mode or layer.return_indices:
            raise no_rule(name, "a pooling with dilation, ceil_mode or return_indices")
        return cls(
            name=name,
            **common,
            kernel=pair(layer.kernel_size),
            stride=pair(layer.stride),
            padding=pair(layer.padding),
        )

    @property
    def dims(self) -> str:
        return "nchw"

    def _windows(self, part: Part) -> list[tuple[Span, tuple[int, int]]]:
        return windows(part, self.shape, self.input_shapes[0], self.kernel, self.stride, self.padding)

    def needs(self, part: Part) -> tuple[Box, ...]:
        return (Box((*part.box.spans[:2], *(span for span, _ in self._windows(part)))),)

    def kept_bytes(self, part: Part, itemsize: int) -> int:
        return part.box.volume * (itemsize + 8)  # int64 indices of the maxima

    def forward(
        self, part: Part, xs: Sequence[Tensor], parameters: Mapping[str, Tensor], context: Context
    ) -> Tensor:
        x, padding = xs[0], self.padding
        if any(padding) and part.box.shape[2:] != self.shape[1:]:
            (_, (top, bottom)), (_, (left, right)) = self._windows(part)
            x, padding = F.pad(x, (left, right, top, bottom), value=float("-inf")), (0, 0)
        return F.max_pool2d(x, self.kernel, self.stride, padding)


@dataclass(frozen=True, kw_only=True)
class AdaptiveAvgPool2d(Op):
    """Average over windows, one for each position of an output with a fixed size."""

    @classmethod
    def from_layer(cls, layer: nn.AdaptiveAvgPool2d, name: str, **common: Any) -> AdaptiveAvgPool2d:
        """Build the op of an `nn.AdaptiveAvgPool2d`."""
        return cls(name=name, **common)

    @property
    def identity(self) -> bool:
        """Whether every window is one position."""
        return self.input_shapes[0] == self.shape

    @property
    def dims(self) -> str:
        # Windows differ in size, so h and w would need their own rules, for a map that is tiny
        # here.
        return "nchw" if self.identity else "nc"

    def needs(self, part: Part) -> tuple[Box, ...]:
        if self.identity:
            return (part.box,)
        _, height, width = self.input_shapes[0]
        return (Box((*part.box.spans[:2], (0, height), (0, width))),)

    def forward(
        self, part: Part, xs: Sequence[Tensor], parameters: Mapping[str, Tensor], context: Context
    ) -> Tensor:
        if self.identity:
            return xs[0]
        # Every window is the same position: repeat it without arithmetic.
        if self.input_shapes[0][1:] == (1, 1):
            return xs[0].expand(-1, -1, *self.shape[1:])
        return F.adaptive_avg_pool2d(xs[0], (self.shape[1], self.shape[2]))
