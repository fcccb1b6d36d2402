"""Which op first gave a value that is infinite or not a number: `trainer.check_finite`.

Every worker notes the first such value of its own. After the step they compare: forward comes before backward, and
within each an op before those that its values reach. Checking waits for every op's result, so it is off
unless asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from parallel.graph import Graph
from parallel.graph.box import Box, cut
from parallel.runtime.communication.world import World
from parallel.runtime.failure.errors import NotFinite
from parallel.runtime.instrumentation.observe import Observer, all_finite


@dataclass(frozen=True, order=True)
class Note:
    """The first value that is not finite on one worker; the smallest of all is the first."""

    batch: int
    """The pass, where every pass updates weights that the next one uses; otherwise 0."""
    backward: bool
    place: int
    """Of the op, in the order of the direction."""
    micro_batch: int
    worker: int
    op: str
    what: str

    def __str__(self) -> str:
        return f"op {self.op} (worker {self.worker}, {self.what})"


class FiniteCheck(Observer):
    """One worker's side. Pass it to the engine, and call `after` when a step is done."""

    def __init__(self, graph: Graph, world: World, batch_size: int, micro_batches: int = 1,
                 updates_every_pass: bool = False) -> None:
        self._world, self._batch_size, self._micro_batches = world, batch_size, micro_batches
        self._updates_every_pass = updates_every_pass
        self._place = {op.name: i for i, op in enumerate(graph)}
        self._note: Note | None = None
        self._batch = 0

    def output(self, op: str, box: Box, rows: Tensor, tensor: Tensor) -> None:
        self._see(tensor, op, "forward", rows)

    def input_gradient(self, op: str, producer: str, rows: Tensor, gradient: Tensor) -> None:
        self._see(gradient, op, f"backward, gradient of its input {producer}", rows)

    def output_gradient(self, op: str, box: Box, rows: Tensor, gradient: Tensor) -> None:
        self._see(gradient, op, "backward, gradient of its output", rows)

    def parameter_gradient(self, op: str, name: str, gradient: Tensor) -> None:
        self._see(gradient, op, f"backward, gradient of its {name}", None)

    def _see(self, tensor: Tensor, op: str, what: str, rows: Tensor | None) -> None:
        backward = what != "forward"
        if rows is not None and self._updates_every_pass:
            self._batch = self._pass(rows, backward)
        if all_finite(tensor):
            return
        micro_batch = None if rows is None else self._micro_batch(rows)
        if micro_batch is not None and self._micro_batches > 1:
            what = f"micro-batch {micro_batch}, {what}"
        place = self._place[op]
        note = Note(self._batch, backward, -place if backward else place, micro_batch or 0, self._world.rank, op, what)
        # Within a segment a tensor is shown first as what its producer got back, then as what its reader gave.
        self._note = note if self._note is None else min(note, self._note)

    def _pass(self, rows: Tensor, backward: bool) -> int:
        """Ops that are computed once a step go forward before the first pass, and backward after the last."""
        micro_batch = self._micro_batch(rows)
        if micro_batch is None:
            return self._micro_batches if backward else 0
        return micro_batch

    def _micro_batch(self, rows: Tensor) -> int | None:
        """The one that all rows belong to, if they do."""
        first, last = int(rows[0]), int(rows[-1])
        for m in range(self._micro_batches):
            start, stop = cut(self._batch_size, self._micro_batches, m)
            if start <= first and last < stop:
                return m
        return None

    def after(self, step: int, loss: Tensor) -> None:
        """Raise `NotFinite` on every worker if any saw something, or if the loss, of which this is a part, is not
        finite."""
        notes = [note for note in self._world.gather(self._note) if note is not None]
        total = self._world.sum(loss.clone()).item()
        if notes:
            raise NotFinite(f"step {step}: {min(notes)} gave the first non-finite value (loss {total:g})")
        if not torch.isfinite(torch.tensor(total)):
            raise NotFinite(f"step {step}: the loss is {total:g}, though every op gave finite values")
