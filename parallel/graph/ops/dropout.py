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
shift. A step's key is computed by the host, the hashes of columns once per run.

On a GPU a mask is one kernel (`one_kernel`). It is integer arithmetic of the same function as on a CPU, so
the bits are the same.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from parallel.graph.box import Box
from parallel.graph.ops.one_kernel import one_kernel

M1, M2 = 0x7FEB352D, 0x846CA68B
WORD = 0xFFFFFFFF

Word = TypeVar("Word", int, Tensor)


def _signed(value: int) -> int:
    return value - 2**32 if value >= 2**31 else value


def _mix(x: Word) -> Word:
    """Return lowbias32 of a word, or of int64 words. Products of 32-bit words may wrap at 64 bits;
    their low 32 bits stay right."""
    x = x & WORD
    x = ((x ^ (x >> 16)) * M1) & WORD
    x = ((x ^ (x >> 15)) * M2) & WORD
    return x ^ (x >> 16)


def _as_int32(x: Tensor) -> Tensor:
    return torch.where(x >= 2**31, x - 2**32, x).to(torch.int32)


def step_key(seed: int, step: int) -> int:
    """Return the hash of seed and step."""
    return _mix(_mix(seed) + step)


def mask_columns(box: Box, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the hashed row-major positions of a box within a sample of shape `shape`: int32, shape of
    the box without n."""
    position = torch.zeros((), dtype=torch.int64, device=device)
    for (start, stop), size in zip(box.spans[1:], shape, strict=True):
        position = position.unsqueeze(-1) * size + torch.arange(start, stop, device=device)
    return _as_int32(_mix(position))


def dropout_mask(
    *, key: Tensor, op: int, samples: Tensor, columns: Tensor, p: float, dtype: torch.dtype
) -> Tensor:
    """Return a mask that is 0 where an element is dropped and 1/(1−p) where it is kept.

    `key` is `step_key` as an int64 scalar; `samples` [n] are the positions of the rows in the global
    batch; `columns` are the `mask_columns` of the box. The result has dtype `dtype` and shape
    [n, *columns.shape].
    """
    return _mask(key, samples, columns, op, round(p * 2**32) - 2**31, 1.0 / (1.0 - p), dtype)


@one_kernel(
    "dropout_mask(Tensor key, Tensor samples, Tensor columns, int op, int least, float scale, "
    "ScalarType dtype) -> Tensor"
)
def _mask(
    key: Tensor, samples: Tensor, columns: Tensor, op: int, least: int, scale: float, dtype: torch.dtype
) -> Tensor:
    """Return the mask; `least` is the smallest word, read as signed, that is kept."""
    rows = _as_int32(_mix(_mix(key + op) + samples)).view(-1, *[1] * columns.dim())
    u = rows + columns
    u.mul_(_signed(M1))
    u.bitwise_xor_((u >> 15).bitwise_and_(WORD >> 15))
    u.mul_(_signed(M2))
    return (u >= least).to(dtype).mul_(scale)
