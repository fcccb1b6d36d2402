"""What validation counts."""

from __future__ import annotations

import torch
from torch import Tensor


def hits(logits: Tensor, labels: Tensor, losses: Tensor) -> Tensor:
    """[loss, top-1 hits, top-5 hits, samples] of the rows whose label is not −1, float64."""
    top = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    rows = torch.stack([losses.double(), top[:, 0].double(), top.any(dim=1).double(), torch.ones_like(losses).double()])
    return (rows * (labels >= 0)).sum(dim=1)
