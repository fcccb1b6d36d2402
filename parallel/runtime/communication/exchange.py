"""Running one exchange: cutting held tensors into messages and assembling received ones.

Tensors travel in memory order: a channels_last tensor as [n, h, w, c], so that samples stay
contiguous.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from parallel.graph.box import Box
from parallel.graph.memory_order import in_logical_order, in_memory_order, memory_shape
from parallel.program import Transfer
from parallel.runtime.communication.transport import Message, Receive, Transport
from parallel.runtime.instrumentation.clock import MessageKey


@dataclass(frozen=True)
class Format:
    """Data type, memory layout and device of tensors."""

    dtype: torch.dtype
    channels_last: bool
    device: torch.device

    def empty(self, shape: Sequence[int]) -> Tensor:
        """Return a new tensor of this shape."""
        return self.in_logical_order(
            torch.empty(self.memory_shape(shape), dtype=self.dtype, device=self.device)
        )

    def memory_shape(self, shape: Sequence[int]) -> list[int]:
        """Return the shape with its dims in memory order."""
        return memory_shape(shape, self.channels_last)

    def in_memory_order(self, x: Tensor) -> Tensor:
        """Return a view of `x` with its dims in memory order."""
        return in_memory_order(x, self.channels_last)

    def in_logical_order(self, x: Tensor) -> Tensor:
        """Return a view of `x`, whose dims are in memory order, with its dims in logical order."""
        return in_logical_order(x, self.channels_last)


@dataclass(frozen=True)
class Move:
    """One worker's part in one direction of an exchange."""

    key: MessageKey
    sends: tuple[tuple[int, Box], ...]
    receives: tuple[tuple[int, Box], ...]
    local: Box | None
    """Part that this worker both holds and needs."""
    has: Box | None
    wants: Box | None
    adds: bool
    """Whether pieces may overlap, and then add up; otherwise they tile `wants`."""


def move(
    key: MessageKey,
    worker: int,
    transfers: Sequence[Transfer],
    holds: Mapping[int, Box],
    needs: Mapping[int, Box],
    *,
    transposed: bool,
    adds: bool,
) -> Move:
    """Return the part of `worker` in an exchange, or in its backward if `transposed`."""
    directed = [(t.target, t.source, t.box) if transposed else (t.source, t.target, t.box) for t in transfers]
    if transposed:
        holds, needs = needs, holds
    own = [box for source, target, box in directed if source == target == worker]
    return Move(
        key,
        tuple((target, box) for source, target, box in directed if source == worker != target),
        tuple((source, box) for source, target, box in directed if target == worker != source),
        own[0] if own else None,
        holds.get(worker),
        needs.get(worker),
        adds or transposed,
    )


@dataclass
class Moving:
    """A move in transit."""

    move: Move
    message: Message
    local: Tensor | None
    target: Tensor | None
    """Where pieces that tile the wanted box are received in place."""


def start(move: Move, held: Tensor | None, transport: Transport, form: Format) -> Moving:
    """Start the move; `held` has the box `move.has`."""
    sends: list[tuple[int, Tensor]] = []
    local = target = None
    if held is not None and move.has is not None:
        held = held.detach().to(form.dtype)
        sends = [(peer, form.in_memory_order(held[box.within(move.has)])) for peer, box in move.sends]
        if move.local is not None:
            local = held[move.local.within(move.has)]
    if move.wants is not None and move.receives and not move.adds:
        target = form.empty(move.wants.shape)
    receives = []
    for peer, box in move.receives:
        piece = None
        if target is not None and move.wants is not None:
            piece = form.in_memory_order(target[box.within(move.wants)])
        into = piece if piece is not None and piece.is_contiguous() else None
        receives.append(Receive(peer, tuple(form.memory_shape(box.shape)), form.dtype, into))
    return Moving(move, transport.start(move.key, sends, receives), local, target)


def finish(moving: Moving, transport: Transport, form: Format) -> Tensor | None:
    """Wait for the move and return the tensor with the box `move.wants`, if there is one."""
    received = [form.in_logical_order(tensor) for tensor in transport.wait(moving.message)]
    result = _put_together(moving, received, form)
    transport.release(moving.message)
    return result


def _put_together(moving: Moving, received: Sequence[Tensor], form: Format) -> Tensor | None:
    m, wants = moving.move, moving.move.wants
    if wants is None:
        return None
    pieces = [(box, tensor) for (_, box), tensor in zip(m.receives, received, strict=True)]
    if moving.target is not None:
        if moving.local is not None and m.local is not None:
            pieces.append((m.local, moving.local))
        for box, tensor in pieces:
            place = moving.target[box.within(wants)]
            if place.data_ptr() != tensor.data_ptr():
                place.copy_(tensor)
        return moving.target
    if moving.local is not None and m.local is not None:
        if m.local == wants and not pieces:
            return moving.local
        pieces.insert(0, (m.local, moving.local))
    # Overlapping pieces add up. The first that covers all is copied: it may lie in a peer's memory.
    first = next((i for i, (box, _) in enumerate(pieces) if box == wants), None)
    total = form.empty(wants.shape)
    if first is None:
        total.zero_()
    else:
        total.copy_(pieces.pop(first)[1])
    for box, tensor in pieces:
        total[box.within(wants)] += tensor
    return total
