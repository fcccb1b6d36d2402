"""Convolution. It may be split in n, c, k, h, w: h and w splits read a halo, a k split gives
partial sums."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.graph.box import Box, Span
from parallel.graph.ops.op import Context, Op, Part, Shape, no_rule, pair, windows


@dataclass(frozen=True, kw_only=True)
class Conv2d(Op):
    """Two-dimensional convolution with groups; `k` runs over the input channels of one group."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int
    bias: bool

    @classmethod
    def from_layer(cls, layer: nn.Conv2d, name: str, **common: Any) -> Conv2d:
        """Build the op of an `nn.Conv2d`."""
        if pair(layer.dilation) != (1, 1) or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            raise no_rule(name, "a convolution with dilation, non-zero or named padding")
        return cls(
            name=name,
            **common,
            kernel=pair(layer.kernel_size),
            stride=pair(layer.stride),
            padding=pair(layer.padding),
            groups=layer.groups,
            bias=layer.bias is not None,
        )

    @property
    def dims(self) -> str:
        return "nckhw"

    @property
    def parameters(self) -> dict[str, Shape]:
        weight = (self.shape[0], self.input_shapes[0][0] // self.groups, *self.kernel)
        return {"weight": weight, "bias": (self.shape[0],)} if self.bias else {"weight": weight}

    @property
    def rounds_parameters(self) -> bool:
        return True

    def extent(self, dim: str) -> int:
        return self.input_shapes[0][0] // self.groups if dim == "k" else super().extent(dim)

    def _k(self, part: Part) -> Span:
        return part.k or (0, self.extent("k"))

    def _groups(self, part: Part) -> range:
        """Return the groups of the part's output channels."""
        per_group = self.shape[0] // self.groups
        start, stop = part.box.spans[1]
        return range(start // per_group, (stop - 1) // per_group + 1)

    def _channels(self, part: Part) -> Span:
        """Return the span from the first to the last input channel that the part reads."""
        k, per_group, groups = self._k(part), self.extent("k"), self._groups(part)
        return groups[0] * per_group + k[0], groups[-1] * per_group + k[1]

    def _windows(self, part: Part) -> list[tuple[Span, tuple[int, int]]]:
        return windows(part, self.shape, self.input_shapes[0], self.kernel, self.stride, self.padding)

    def needs(self, part: Part) -> tuple[Box, ...]:
        return (Box((part.box.spans[0], self._channels(part), *(span for span, _ in self._windows(part)))),)

    def parameter_boxes(self, part: Part) -> dict[str, Box]:
        c, k = part.box.spans[1], self._k(part)
        boxes = {"weight": Box((c, k, (0, self.kernel[0]), (0, self.kernel[1])))}
        if self.bias and k[0] == 0:  # the bias is added to the first partial sum only
            boxes["bias"] = Box((c,))
        return boxes

    def multiply_adds(self, part: Part) -> int:
        k = self._k(part)
        return part.box.volume * (k[1] - k[0]) * math.prod(self.kernel)

    def kept_bytes(self, part: Part, itemsize: int) -> int:
        kept = part.box.volume
        if part.box.shape[2:] != self.shape[1:]:  # forward pads a copy of the input
            (_, (top, bottom)), (_, (left, right)) = self._windows(part)
            samples, channels, height, width = self.needs(part)[0].shape
            kept += samples * channels * (height + top + bottom) * (width + left + right)
        return kept * itemsize

    def forward(
        self, part: Part, xs: Sequence[Tensor], parameters: Mapping[str, Tensor], context: Context
    ) -> Tensor:
        x, weight, bias = xs[0], parameters["weight"], parameters.get("bias")
        spans = part.box.spans
        padding = self.padding
        if any(spans[i + 2] != (0, self.shape[i + 1]) for i in range(2)):
            (_, (top, bottom)), (_, (left, right)) = self._windows(part)
            x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)

        groups, out_per_group, in_per_group = (
            self._groups(part),
            self.shape[0] // self.groups,
            self.extent("k"),
        )
        k = self._k(part)
        whole_groups = spans[1][0] % out_per_group == 0 and spans[1][1] % out_per_group == 0
        if len(groups) == 1 or (whole_groups and k == (0, in_per_group)):
            return F.conv2d(x, weight, bias, self.stride, padding, groups=len(groups))
        # Otherwise the output channels cover parts of groups, or the span of k has gaps between
        # groups.
        outs = []
        for g in groups:
            start, stop = max(spans[1][0], g * out_per_group), min(spans[1][1], (g + 1) * out_per_group)
            c = slice(start - spans[1][0], stop - spans[1][0])
            first = (g - groups[0]) * in_per_group
            outs.append(
                F.conv2d(
                    x[:, first : first + k[1] - k[0]],
                    weight[c],
                    None if bias is None else bias[c],
                    self.stride,
                    padding,
                )
            )
        return torch.cat(outs, dim=1)
