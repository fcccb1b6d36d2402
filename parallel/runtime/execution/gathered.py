"""Whole tensors of a training, gathered on one worker to look at them."""

from __future__ import annotations

from itertools import chain

from torch import Tensor

from parallel.checkpoints.piece import Piece, Place, assembled
from parallel.runtime.communication.world import World
from parallel.runtime.execution.engine import Engine


def gathered(engine: Engine, kind: str, world: World) -> dict[str, Tensor]:
    """Return the tensors of a kind from all workers, by name: on worker 0, on the CPU; empty on the
    others.

    Gradients are those of the last step, and only of a runtime with `keep_gradients`.
    """
    own = [(vars(piece.place), piece.values.cpu()) for piece in engine.pieces(kind)]
    by_name: dict[str, list[Piece]] = {}
    for place, values in chain.from_iterable(world.gather_to_first(own)):
        piece = Piece(Place(**place), values)
        by_name.setdefault(piece.place.name, []).append(piece)
    return {name: assembled(pieces) for name, pieces in by_name.items()}
