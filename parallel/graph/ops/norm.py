"""Normalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from parallel.graph.box import Box
from parallel.graph.ops.op import Context, Op, Part


@dataclass(frozen=True, kw_only=True)
class LocalResponseNorm(Op):
    """Division by a power of the squares summed over neighbouring channels; a c split reads a halo of channels."""

    size: int
    alpha: float
    beta: float
    k: float

    @property
    def dims(self) -> str:
        return "nchw"

    def _halo(self, part: Part) -> tuple[int, int]:
        start, stop = part.box.spans[1]
        return min(start, self.size // 2), min(self.shape[0] - stop, (self.size - 1) // 2)

    def needs(self, part: Part) -> tuple[Box, ...]:
        before, after = self._halo(part)
        start, stop = part.box.spans[1]
        return (part.box.replace(1, (start - before, stop + after)),)

    def kept_bytes(self, part: Part, itemsize: int) -> int:
        # The output and, of the input's size: squares, the same padded, their mean, its scaled form, its power.
        return (part.box.volume + 5 * self.needs(part)[0].volume) * itemsize

    def forward(self, part: Part, xs: Sequence[Tensor], parameters: Mapping[str, Tensor], context: Context) -> Tensor:
        y = F.local_response_norm(xs[0], self.size, self.alpha, self.beta, self.k)
        before, after = self._halo(part)
        return y[:, before : y.shape[1] - after]
