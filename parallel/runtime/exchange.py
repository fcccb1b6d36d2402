"""Running one exchange: cut what is held into messages, put what is received together.

Tensors travel in their memory order: a channels_last tensor as [n, h, w, c], so that samples stay contiguous.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from parallel.box import Box
from parallel.program import Transfer
from parallel.runtime.clock import Key
from parallel.runtime.transport import Message, Transport


@dataclass(frozen=True)
class Format:
    """How activations lie in memory and travel."""

    dtype: torch.dtype
    channels_last: bool
    device: torch.device

    def empty(self, shape: Sequence[int]) -> Tensor:
        """A new tensor of this shape."""
        return self.in_logical_order(
            torch.empty(self.memory_shape(shape), dtype=self.dtype, device=self.device)
        )

    def memory_shape(self, shape: Sequence[int]) -> list[int]:
        """The shape with its dims in memory order."""
        return [shape[i] for i in self._order(len(shape))]

    def in_memory_order(self, x: Tensor) -> Tensor:
        """A view with the dims in the order in which they lie in memory."""
        return x.permute(self._order(x.dim()))

    def in_logical_order(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2) if x.dim() == 4 and self.channels_last else x

    def _order(self, dims: int) -> list[int]:
        return [0, 2, 3, 1] if dims == 4 and self.channels_last else list(range(dims))


@dataclass(frozen=True)
class Move:
    """One direction of an exchange, as one worker sees it."""

    key: Key
    sends: tuple[tuple[int, Box], ...]
    receives: tuple[tuple[int, Box], ...]
    local: Box | None
    """What this worker holds and needs itself."""
    has: Box | None
    wants: Box | None
    adds: bool
    """Pieces may overlap, and then add up; otherwise they tile what is wanted."""


def move(key: Key, worker: int, transfers: Sequence[Transfer], holds: Mapping[int, Box], needs: Mapping[int, Box],
         *, transposed: bool, adds: bool) -> Move:
    """What `worker` does in an exchange, or, transposed, in its backward."""
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
    """A move under way."""

    move: Move
    message: Message
    received: list[Tensor]
    local: Tensor | None
    target: Tensor | None
    """Where pieces that tile the wanted box were received in place, if they could be."""


def start(move: Move, held: Tensor | None, transport: Transport, form: Format) -> Moving:
    """Begin the move; `held` has the box `move.has`."""
    sends: list[tuple[int, Tensor]] = []
    local = None
    if held is not None and move.has is not None:
        held = held.detach().to(form.dtype)
        for peer, box in move.sends:
            sends.append((peer, form.in_memory_order(held[box.within(move.has)]).contiguous()))
        if move.local is not None:
            local = held[move.local.within(move.has)]
    target = None
    received: list[Tensor] = []
    receives: list[tuple[int, Tensor]] = []
    if move.wants is not None and move.receives:
        if not move.adds:
            target = form.empty(move.wants.shape)
        for peer, box in move.receives:
            piece = None if target is None else target[box.within(move.wants)]
            if piece is None or not form.in_memory_order(piece).is_contiguous():
                piece = form.empty(box.shape)
            received.append(piece)
            receives.append((peer, form.in_memory_order(piece)))
    return Moving(move, transport.start(move.key, sends, receives), received, local, target)


def finish(moving: Moving, transport: Transport, form: Format) -> Tensor | None:
    """Wait for the move and return what is wanted, or None if nothing is."""
    transport.wait(moving.message)
    m = moving.move
    if m.wants is None:
        return None
    pieces = [(box, tensor) for (_, box), tensor in zip(m.receives, moving.received, strict=True)]
    if moving.local is not None and m.local is not None:
        pieces.insert(0, (m.local, moving.local))
    if moving.target is not None:
        for box, tensor in pieces:
            place = moving.target[box.within(m.wants)]
            if place.data_ptr() != tensor.data_ptr():
                place.copy_(tensor)
        return moving.target
    whole = [tensor for box, tensor in pieces if box == m.wants]
    if len(pieces) == 1 and whole:
        return whole[0]
    # Overlapping pieces add up. A received piece that covers all is added to in place; it belongs to nobody else.
    base = next((t for (box, t) in pieces if box == m.wants and t is not moving.local), None)
    total = form.empty(m.wants.shape).zero_() if base is None else base
    for box, tensor in pieces:
        if tensor is not base:
            total[box.within(m.wants)] += tensor
    return total
