"""The order of a tensor's dims in memory: a channels_last tensor of four dims lies as [n, h, w, c]."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def memory_shape(shape: Sequence[int], channels_last: bool) -> list[int]:
    """Return the shape with its dims in memory order."""
    return [shape[i] for i in _order(len(shape), channels_last)]


def in_memory_order(x: Tensor, channels_last: bool) -> Tensor:
    """Return a view of `x` with its dims in memory order."""
    return x.permute(0, 2, 3, 1) if x.dim() == 4 and channels_last else x


def in_logical_order(x: Tensor, channels_last: bool) -> Tensor:
    """Return a view of `x`, whose dims are in memory order, with its dims in logical order."""
    return x.permute(0, 3, 1, 2) if x.dim() == 4 and channels_last else x


def _order(dims: int, channels_last: bool) -> list[int]:
    return [0, 2, 3, 1] if dims == 4 and channels_last else list(range(dims))
