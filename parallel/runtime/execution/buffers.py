"""A worker's buffers: the running statistics of its batch normalisations, which have no gradient.

All workers that compute a channel see the same sums, so each updates its own copy and sends
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from parallel.checkpoints.piece import Piece, Place, ReadTensor
from parallel.graph.box import Box
from parallel.graph.ops import Op
from parallel.program import Program
from parallel.runtime.communication.exchange import Format


def buffer_boxes(program: Program, op: Op, rank: int) -> Mapping[str, Box]:
    """Return the box of each buffer of an op that a worker holds."""
    part = program.part(op.name, rank, 0) if op.buffers else None
    return {} if part is None else op.buffer_boxes(part)


class Buffers:
    """Parts of the model's buffers that one worker's ops use."""

    def __init__(self, program: Program, model: nn.Module, rank: int, form: Format) -> None:
        self._program = program
        self._boxes: dict[tuple[str, str], Box] = {}
        self._initial: dict[tuple[str, str], Tensor] = {}
        self._last: set[tuple[str, str]] = set()
        """Buffers of which no worker after this one holds the same box."""
        self.held: dict[str, dict[str, Tensor]] = {}
        """Tensors by op and buffer."""
        given = dict(model.named_buffers())
        for op in program.graph:
            for name, box in buffer_boxes(program, op, rank).items():
                whole = given[f"{op.name}.{name}"].detach()
                own = whole[box.within(Box.whole(op.buffers[name]))].to(form.device, form.dtype, copy=True)
                self._boxes[op.name, name], self._initial[op.name, name] = box, own
                later = range(rank + 1, program.plan.workers)
                if all(buffer_boxes(program, op, other).get(name) != box for other in later):
                    self._last.add((op.name, name))
                self.held.setdefault(op.name, {})[name] = own.clone()

    def reset(self) -> None:
        """Restore the initial values."""
        for (op, name), initial in self._initial.items():
            self.held[op][name].copy_(initial)

    def pieces(self) -> list[Piece]:
        """Return the parts that no worker after this one holds: views, not copies."""
        pieces = []
        for (op, name), box in self._boxes.items():
            if (op, name) in self._last:
                place = Place(
                    "buffers",
                    f"{op}.{name}",
                    self._program.graph[op].buffers[name],
                    box.spans,
                    False,
                    0,
                    box.volume,
                )
                pieces.append(Piece(place, self.held[op][name].reshape(-1)))
        return pieces

    def load(self, read: ReadTensor) -> None:
        """Replace the values by those that `read` returns."""
        for (op, name), box in self._boxes.items():
            whole = read("buffers", f"{op}.{name}")
            self.held[op][name].copy_(whole[box.within(Box.whole(tuple(whole.shape)))])
