"""Ops that only rearrange."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from parallel.box import Box
from parallel.ops.op import Context, Op, Part


@dataclass(frozen=True, kw_only=True)
class Flatten(Op):
    """[n, c, h, w] to [n, c·h·w]: a span of features comes from the channels that it touches."""

    @property
    def _area(self) -> int:
        return math.prod(self.input_shapes[0][1:])

    def needs(self, part: Part) -> tuple[Box, ...]:
        start, stop = part.box.spans[1]
        channels = start // self._area, -(-stop // self._area)
        return (Box((part.box.spans[0], channels, *((0, size) for size in self.input_shapes[0][1:]))),)

    def forward(self, part: Part, xs: Sequence[Tensor], parameters: Mapping[str, Tensor], context: Context) -> Tensor:
        start, stop = part.box.spans[1]
        first = start - start % self._area
        flat = xs[0].flatten(1)
        return flat if flat.shape[1] == stop - start else flat[:, start - first : stop - first]
