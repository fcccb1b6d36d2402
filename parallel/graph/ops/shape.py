"""Ops that only rearrange elements: concatenation and flattening."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from parallel.graph.box import Box, Span
from parallel.graph.ops.op import Context, Op, Part, no_rule


@dataclass(frozen=True, kw_only=True)
class Concat(Op):
    """Concatenation along c; an input outside the part's channels is not needed."""

    @classmethod
    def from_call(
        cls, arguments: Sequence[object], options: Mapping[str, object], name: str, **common: Any
    ) -> Concat:
        """Build the op of a call such as `torch.cat([x, y], dim=1)`."""
        given = {"dim": 0, **dict(zip(("dim",), arguments, strict=False)), **options}
        if given.get("axis", given["dim"]) not in (1, -len(common["shape"])):
            raise no_rule(name, "a concatenation along another dim than 1, the channels,")
        return cls(name=name, **common)

    @property
    def dims(self) -> str:
        return "nchw"[: len(self.shape) + 1]

    def _spans(self, part: Part) -> list[Span]:
        """Return, for each input, the span of its channels that the part reads; it may be empty."""
        (start, stop), spans, first = part.box.spans[1], list[Span](), 0
        for channels, *_ in self.input_shapes:
            spans.append((min(max(start - first, 0), channels), min(max(stop - first, 0), channels)))
            first += channels
        return spans

    def needs(self, part: Part) -> tuple[Box, ...]:
        return tuple(part.box.replace(1, span) for span in self._spans(part))

    def forward(
        self, part: Part, xs: Sequence[Tensor], parameters: Mapping[str, Tensor], context: Context
    ) -> Tensor:
        there = [x for x in xs if x.shape[1] > 0]
        return there[0] if len(there) == 1 else torch.cat(there, dim=1)


@dataclass(frozen=True, kw_only=True)
class Flatten(Op):
    """[n, c, h, w] to [n, c·h·w]; a span of features reads every channel that it touches."""

    @classmethod
    def from_layer(cls, layer: nn.Flatten, name: str, **common: Any) -> Flatten:
        """Build the op of an `nn.Flatten`."""
        if (layer.start_dim, layer.end_dim) != (1, -1):
            raise no_rule(name, "a flatten of other dims than 1 to -1")
        return cls(name=name, **common)

    @classmethod
    def from_call(
        cls, arguments: Sequence[object], options: Mapping[str, object], name: str, **common: Any
    ) -> Flatten:
        """Build the op of a call such as `torch.flatten(x, 1)`."""
        positional = dict(zip(("start_dim", "end_dim"), arguments, strict=False))
        given = {"start_dim": 0, "end_dim": -1, **positional, **options}
        if given["start_dim"] != 1 or given["end_dim"] not in (-1, len(common["input_shapes"][0])):
            raise no_rule(name, "a flatten of other dims than 1 to -1")
        return cls(name=name, **common)

    @property
    def _area(self) -> int:
        return math.prod(self.input_shapes[0][1:])

    def needs(self, part: Part) -> tuple[Box, ...]:
        start, stop = part.box.spans[1]
        channels = start // self._area, -(-stop // self._area)
        return (Box((part.box.spans[0], channels, *((0, size) for size in self.input_shapes[0][1:]))),)

    def forward(
        self, part: Part, xs: Sequence[Tensor], parameters: Mapping[str, Tensor], context: Context
    ) -> Tensor:
        start, stop = part.box.spans[1]
        first = start - start % self._area
        flat = xs[0].flatten(1)
        return flat if flat.shape[1] == stop - start else flat[:, start - first : stop - first]
