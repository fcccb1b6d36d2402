"""Dropout masks: a function of seed, step, op and position in the global batch, never of the
worker.

In unsigned 32-bit arithmetic, with `mix` the integer hash lowbias32 (Wellons 2018, "Prospecting for
hash functions"):

    key       = mix(mix(seed) + step)
    row(i)    = mix(mix(key + op) + i)                        i: position of the sample in the global batch
    column(j) = mix(j)                                        j: row-major position within the sample
    u         = row(i) + column(j)
    u         = u · 0x7feb352d;  u = u xor (u >> 15);  u = u · 0x846ca68b
    kept     ⇔  u, read as signed, ≥ p · 2³² − 2³¹

Each row and each column is hashed once, so that one element costs two multiplications and one
shift.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parallel.graph.box import Box

M1, M2 = 0x7FEB352D, 0x846CA68B
WORD = 0xFFFFFFFF


def _signed(value: int) -> int:
    return value - 2**32 if value >= 2**31 else value


def _mix(x: Tensor) -> Tensor:
    """Return lowbias32 of int64 words. Products of 32-bit words may wrap at 64 bits; their low 32
    bits stay right."""
    x = x & WORD
    x = ((x ^ (x >> 16)) * M1) & WORD
    x = ((x ^ (x >> 15)) * M2) & WORD
    return x ^ (x >> 16)


def _as_int32(x: Tensor) -> Tensor:
    return torch.where(x >= 2**31, x - 2**32, x).to(torch.int32)


def _columns(box: Box, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the hashed row-major positions of the box within a sample: int32, shape of the box
    without n."""
    position = torch.zeros((), dtype=torch.int64, device=device)
    for (start, stop), size in zip(box.spans[1:], shape, strict=True):
        position = position.unsqueeze(-1) * size + torch.arange(start, stop, device=device)
    return _as_int32(_mix(position))


def step_key(seed: int, step: int, device: torch.device) -> Tensor:
    """Return the hash of seed and step, an int64 scalar."""
    return _mix(_mix(torch.tensor(seed, device=device)) + step)


def dropout_mask(
    *, key: Tensor, op: int, samples: Tensor, box: Box, shape: tuple[int, ...], p: float, dtype: torch.dtype
) -> Tensor:
    """Return a mask that is 0 where an element is dropped and 1/(1−p) where it is kept.

    `samples` [n] are the positions of the rows in the global batch; `box` is the part of a sample
    of shape `shape` (its n span is ignored). The result has dtype `dtype` and shape [n, *box
    without n].
    """
    rows = _as_int32(_mix(_mix(key + op) + samples)).view(-1, *[1] * len(shape))
    u = rows + _columns(box, shape, samples.device)
    u.mul_(_signed(M1))
    u.bitwise_xor_((u >> 15).bitwise_and_(WORD >> 15))
    u.mul_(_signed(M2))
    return (u >= round(p * 2**32) - 2**31).to(dtype).mul_(1.0 / (1.0 - p))
