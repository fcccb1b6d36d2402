"""The loss, an op that reads whole rows of logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from parallel.graph.box import Box
from parallel.graph.ops.op import Context, Op, Part


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Op):
    """Softmax cross-entropy of logits [n, c] against labels [n]: one loss per sample."""

    @property
    def dims(self) -> str:
        return "n"

    def needs(self, part: Part) -> tuple[Box, ...]:
        return (Box((part.box.spans[0], (0, self.input_shapes[0][0]))),)

    def forward(
        self, part: Part, xs: Sequence[Tensor], parameters: Mapping[str, Tensor], context: Context
    ) -> Tensor:
        logits, labels = xs
        # At least fp32: bf16 has too few digits for a sum of exponentials over 1000 classes.
        logits = logits if logits.dtype.itemsize >= 4 else logits.float()
        return F.cross_entropy(logits, labels, reduction="none", ignore_index=-1)
