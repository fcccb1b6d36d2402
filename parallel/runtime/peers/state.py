"""The training state of a peer, whole on every worker or sharded over them, as pieces of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from parallel.checkpoints.piece import Piece, Place
from parallel.graph.box import Box, cut
from parallel.graph.memory_order import in_memory_order


def local_part(tensor: Tensor) -> tuple[Tensor, Box]:
    """Return the part of a tensor that this worker holds, and its box."""
    if not isinstance(tensor, DTensor):
        return tensor, Box.whole(tuple(tensor.shape))
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    box = Box(tuple((start, start + size) for start, size in zip(offset, shape, strict=True)))
    return tensor.to_local(), box


def fill(tensor: Tensor, whole: Tensor) -> None:
    """Copy this worker's part of `whole` to a tensor, which may be sharded."""
    local, box = local_part(tensor)
    if not box.empty:
        local.copy_(whole[box.within(Box.whole(tuple(tensor.shape)))])


def pieces_of(
    kind: str, tensors: Mapping[str, Tensor], rank: int, size: int, *, channels_last: bool
) -> Iterator[Piece]:
    """Yield the pieces that worker `rank` of `size` gives.

    Of tensors that all workers hold it gives an equal part of the elements, of sharded ones its
    shard.
    """
    replicated = sum(tensor.numel() for tensor in tensors.values() if not isinstance(tensor, DTensor))
    begin, (start, stop) = 0, cut(replicated, size, rank)
    for name, tensor in tensors.items():
        local, box = local_part(tensor)
        if box.empty:
            continue
        if isinstance(tensor, DTensor):
            first, last = 0, local.numel()
        else:
            first, last = max(start - begin, 0), min(stop - begin, local.numel())
            begin += local.numel()
        if first < last:
            place = Place(kind, name, tuple(tensor.shape), box.spans, channels_last, first, last)
            yield Piece(place, in_memory_order(local, channels_last).reshape(-1)[first:last])
