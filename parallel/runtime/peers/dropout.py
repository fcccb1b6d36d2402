"""Dropout of the peers: the masks of the plans, or torch's own.

The plans' masks depend on the seed, the step, the op and the position of the sample. torch's come
from its generator, which starts every step at a number of its own (seed, step, worker), so that a
run that was interrupted trains what it would have trained.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parallel.graph.box import Box
from parallel.graph.ops.dropout import dropout_mask, mask_columns, step_key


@dataclass
class DropoutStep:
    """Step and samples that the masks depend on."""

    seed: int
    samples: Tensor
    """Positions of this worker's samples in the global batch."""
    rank: int
    key: Tensor
    ours: bool

    @staticmethod
    def first(seed: int, samples: Tensor, rank: int, *, ours: bool) -> DropoutStep:
        key = torch.zeros((), dtype=torch.int64, device=samples.device)
        return DropoutStep(seed, samples, rank, key, ours)

    def begin(self, step: int) -> None:
        """Begin an optimizer step."""
        if self.ours:
            self.key.fill_(step_key(self.seed, step))
        else:
            torch.manual_seed(zlib.crc32(f"{self.seed} {step} {self.rank}".encode()))


class MaskedDropout(nn.Module):
    """Dropout with the masks of the plans."""

    def __init__(self, name: str, p: float, step: DropoutStep) -> None:
        super().__init__()
        self.op, self.p, self.step = zlib.crc32(name.encode()), p, step
        self._columns: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        if self._columns is None or self._columns.shape != x.shape[1:]:
            self._columns = mask_columns(Box.whole(tuple(x.shape)), tuple(x.shape[1:]), x.device)
        return x * dropout_mask(
            key=self.step.key,
            op=self.op,
            samples=self.step.samples,
            columns=self._columns,
            p=self.p,
            dtype=x.dtype,
        )


def mask_dropouts(model: nn.Module, step: DropoutStep) -> None:
    """Replace the model's dropout layers by `MaskedDropout`."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Dropout):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, MaskedDropout(name, layer.p, step))
