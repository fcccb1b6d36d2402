"""Local response normalisation (Krizhevsky et al. 2012, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from parallel.graph.box import Box
from parallel.graph.ops.op import Context, Op, Part


@dataclass(frozen=True, kw_only=True)
class LocalResponseNorm(Op):
    """Division by a power of the sum of squares over neighbouring channels; a c split reads a halo
    of channels."""

    size: int
    alpha: float
    beta: float
    k: float

    @classmethod
    def from_layer(cls, layer: nn.LocalResponseNorm, name: str, **common: Any) -> LocalResponseNorm:
        """Build the op of an `nn.LocalResponseNorm`."""
        return cls(name=name, **common, size=layer.size, alpha=layer.alpha, beta=layer.beta, k=layer.k)

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
        # The output, and five tensors of the input's size: squares, padded squares, mean, scaled
        # mean, its power.
        return (part.box.volume + 5 * self.needs(part)[0].volume) * itemsize

    def forward(
        self, part: Part, xs: Sequence[Tensor], parameters: Mapping[str, Tensor], context: Context
    ) -> Tensor:
        y = F.local_response_norm(xs[0], self.size, self.alpha, self.beta, self.k)
        before, after = self._halo(part)
        return y[:, before : y.shape[1] - after]
