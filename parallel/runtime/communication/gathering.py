"""Gather bytes of any length from all workers over the process group.

The first collective moves a block of each worker, the length and the first bytes; a second one moves
what is left, padded to the longest. Most values fit into the block: numbers, short texts.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from parallel.runtime.communication.encoding import MOST_MESSAGE_BYTES
from parallel.runtime.failure.errors import RunEnded

BLOCK_BYTES = 1024
_LENGTH_BYTES = 8
_INSIDE = BLOCK_BYTES - _LENGTH_BYTES
"""Bytes of a message that fit into its block."""


def gather_bytes(own: bytes, size: int, device: torch.device, to: int | None = None) -> list[bytes]:
    """Return the bytes of all `size` workers, by rank: on every worker, or only on worker `to`.

    The list is empty on the workers that get nothing. `device` is that of the process group. Raises
    `RunEnded` if a worker states a length that no message has.
    """
    block = len(own).to_bytes(_LENGTH_BYTES, "little") + own[:_INSIDE]
    first = [part.cpu().numpy().tobytes() for part in _all_gather(_tensor(block, BLOCK_BYTES, device), size)]
    lengths = [int.from_bytes(part[:_LENGTH_BYTES], "little") for part in first]
    for rank, length in enumerate(lengths):
        if length > MOST_MESSAGE_BYTES:
            raise RunEnded(
                f"worker {rank} sends a message of {length:,} bytes, more than {MOST_MESSAGE_BYTES:,}"
            )
    here = to is None or dist.get_rank() == to
    rest: list[Tensor] = []
    longest = max(lengths)
    if longest > _INSIDE:
        left = _tensor(own[_INSIDE:], longest - _INSIDE, device)
        rest = _all_gather(left, size) if to is None else _gather(left, size, to, here)
    if not here:
        return []
    messages = []
    for rank, length in enumerate(lengths):
        message = first[rank][_LENGTH_BYTES : _LENGTH_BYTES + length]
        if length > _INSIDE:
            message += rest[rank][: length - _INSIDE].cpu().numpy().tobytes()
        messages.append(message)
    return messages


def _tensor(content: bytes, size: int, device: torch.device) -> Tensor:
    padded = np.zeros(size, np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    return torch.from_numpy(padded).to(device)


def _all_gather(own: Tensor, size: int) -> list[Tensor]:
    parts = [torch.empty_like(own) for _ in range(size)]
    dist.all_gather(parts, own)
    return parts


def _gather(own: Tensor, size: int, to: int, here: bool) -> list[Tensor]:
    parts = [torch.empty_like(own) for _ in range(size)] if here else []
    dist.gather(own, parts if here else None, dst=to)
    return parts
