"""Whole tensors of a training, gathered on one worker to look at them."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from parallel.checkpoints.piece import Piece, assembled
from parallel.runtime.communication.world import World
from parallel.runtime.execution.engine import Engine


def gathered(engine: Engine, kind: str, world: World) -> dict[str, Tensor]:
    """Return the tensors of a kind from all workers, by name: on worker 0, on the CPU; empty on the
    others.

    Gradients are those of the last step, and only of a runtime with `keep_gradients`.
    """
    own = [dataclasses.replace(piece, values=piece.values.cpu()) for piece in engine.pieces(kind)]
    by_name: dict[str, list[Piece]] = {}
    for pieces in world.gather_to_first(own):
        for piece in pieces:
            by_name.setdefault(piece.place.name, []).append(piece)
    return {name: assembled(pieces) for name, pieces in by_name.items()}
