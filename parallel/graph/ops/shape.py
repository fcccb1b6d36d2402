"""Ops that only rearrange."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from parallel.graph.box import Box, Span
from parallel.graph.ops.op import Context, Op, Part


@dataclass(frozen=True, kw_only=True)
class Concat(Op):
    """Tensors one after the other along c: of an input that lies outside the part's channels nothing is needed."""

    @property
    def dims(self) -> str:
        return "nchw"[: len(self.shape) + 1]

    def _spans(self, part: Part) -> list[Span]:
        """Per input, the span of its own channels that the part has; empty where it has none."""
        (start, stop), spans, first = part.box.spans[1], list[Span](), 0
        for channels, *_ in self.input_shapes:
            spans.append((min(max(start - first, 0), channels), min(max(stop - first, 0), channels)))
            first += channels
        return spans

    def needs(self, part: Part) -> tuple[Box, ...]:
        return tuple(part.box.replace(1, span) for span in self._spans(part))

    def forward(self, part: Part, xs: Sequence[Tensor], parameters: Mapping[str, Tensor], context: Context) -> Tensor:
        there = [x for x in xs if x.shape[1] > 0]
        return there[0] if len(there) == 1 else torch.cat(there, dim=1)


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
