"""A worker's buffers: the running statistics of its batch normalisations, which have no gradient.

All workers that compute a channel see the same sums, so each updates its own copy and sends
nothing.
"""

from __future__ import annotations

from torch import Tensor, nn

from parallel.graph.box import Box
from parallel.program import Program
from parallel.runtime.communication.exchange import Format
from parallel.runtime.communication.world import World


class Buffers:
    """Parts of the model's buffers that one worker's ops use."""

    def __init__(self, program: Program, model: nn.Module, rank: int, form: Format) -> None:
        self._program = program
        self._boxes: dict[tuple[str, str], Box] = {}
        self._initial: dict[tuple[str, str], Tensor] = {}
        self.held: dict[str, dict[str, Tensor]] = {}
        """Tensors by op and buffer."""
        given = dict(model.named_buffers())
        for op in program.graph:
            part = program.part(op.name, rank, 0) if op.buffers else None
            for name, box in {} if part is None else op.buffer_boxes(part).items():
                whole = given[f"{op.name}.{name}"].detach()
                own = whole[box.within(Box.whole(op.buffers[name]))].to(form.device, form.dtype, copy=True)
                self._boxes[op.name, name], self._initial[op.name, name] = box, own
                self.held.setdefault(op.name, {})[name] = own.clone()

    def reset(self) -> None:
        """Restore the initial values."""
        for (op, name), initial in self._initial.items():
            self.held[op][name].copy_(initial)

    def gathered(self, world: World) -> dict[tuple[str, str], Tensor]:
        """Return whole buffers by op and name: on worker 0, on the CPU; empty on the others."""
        own = {
            (op, name): (self._boxes[op, name], tensor.cpu())
            for op, tensors in self.held.items()
            for name, tensor in tensors.items()
        }
        whole: dict[tuple[str, str], Tensor] = {}
        for parts in world.gather_to_first(own):
            for (op, name), (box, tensor) in parts.items():
                shape = self._program.graph[op].buffers[name]
                whole.setdefault((op, name), tensor.new_empty(shape))[box.within(Box.whole(shape))] = tensor
        return whole
