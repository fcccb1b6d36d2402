"""Batches of random images, for measurements and comparisons that need no data set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def random_batch(
    size: int, shape: Sequence[int], classes: int, *, seed: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Return images ([size, *shape], of `dtype`) and labels ([size]). They depend only on the arguments,
    so that every worker makes the same."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, *shape, dtype=dtype, generator=generator)
    return images, torch.randint(classes, (size,), generator=generator)
