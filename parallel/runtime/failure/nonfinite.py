"""Which op first computed an infinite or NaN value: `trainer.check_finite`.

Every worker records its first such value, and after the step the workers compare:
forward precedes backward, and within each direction an op precedes those that its values reach.
Checking synchronises with the device after every op, so it is off by default.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from parallel.graph import Graph
from parallel.graph.box import Box, cut
from parallel.runtime.failure.errors import NotFinite
from parallel.runtime.instrumentation.group import Group
from parallel.runtime.instrumentation.observe import Observer, all_finite


@dataclass(frozen=True, order=True)
class NonfiniteValue:
    """The first value on one worker that is not finite.

    The smallest over all workers is the first of the step.
    """

    batch: int
    """Number of the pass if every pass updates weights; otherwise 0."""
    backward: bool
    place: int
    """Position of the op in the order of the direction."""
    micro_batch: int
    worker: int
    op: str
    what: str

    def __str__(self) -> str:
        return f"op {self.op} (worker {self.worker}, {self.what})"


class NonfiniteCheck(Observer):
    """One worker's check.

    Pass it to the engine as its observer, and call `after` when a step is done.
    """

    def __init__(
        self,
        graph: Graph,
        group: Group,
        batch_size: int,
        micro_batches: int = 1,
        updates_every_pass: bool = False,
    ) -> None:
        self._group, self._batch_size, self._micro_batches = group, batch_size, micro_batches
        self._updates_every_pass = updates_every_pass
        self._place = {op.name: i for i, op in enumerate(graph)}
        self._first: NonfiniteValue | None = None
        self._batch = 0

    def output(self, op: str, box: Box, rows: Tensor, tensor: Tensor) -> None:
        self._check(tensor, op, "forward", rows)

    def input_gradient(self, op: str, producer: str, rows: Tensor, gradient: Tensor) -> None:
        self._check(gradient, op, f"backward, gradient of its input {producer}", rows)

    def output_gradient(self, op: str, box: Box, rows: Tensor, gradient: Tensor) -> None:
        self._check(gradient, op, "backward, gradient of its output", rows)

    def parameter_gradient(self, op: str, name: str, gradient: Tensor) -> None:
        self._check(gradient, op, f"backward, gradient of its {name}", None)

    def _check(self, tensor: Tensor, op: str, what: str, rows: Tensor | None) -> None:
        backward = what != "forward"
        if rows is not None and self._updates_every_pass:
            self._batch = self._pass(rows, backward)
        if all_finite(tensor):
            return
        micro_batch = None if rows is None else self._micro_batch(rows)
        if micro_batch is not None and self._micro_batches > 1:
            what = f"micro-batch {micro_batch}, {what}"
        place = -self._place[op] if backward else self._place[op]
        found = NonfiniteValue(self._batch, backward, place, micro_batch or 0, self._group.rank, op, what)
        # Within a segment a tensor is observed first as its producer's output gradient, then as its
        # reader's input gradient: the smallest names the reader.
        self._first = found if self._first is None else min(found, self._first)

    def _pass(self, rows: Tensor, backward: bool) -> int:
        """Return the pass that the rows belong to.

        Ops that are computed once a step run forward before the first pass and backward after the
        last.
        """
        micro_batch = self._micro_batch(rows)
        if micro_batch is None:
            return self._micro_batches if backward else 0
        return micro_batch

    def _micro_batch(self, rows: Tensor) -> int | None:
        """Return the micro-batch that all rows belong to, or None if there is more than one."""
        first, last = int(rows[0]), int(rows[-1])
        for m in range(self._micro_batches):
            start, stop = cut(self._batch_size, self._micro_batches, m)
            if start <= first and last < stop:
                return m
        return None

    def after(self, step: int, loss: Tensor) -> None:
        """Raise `NotFinite` on every worker if one found a value or the loss is not finite.

        `loss` is this worker's part of the loss.
        """
        own = None if self._first is None else dataclasses.astuple(self._first)
        found = [NonfiniteValue(*values) for values in self._group.gather(own) if values is not None]
        total = self._group.sum(loss.clone()).item()
        if found:
            raise NotFinite(f"step {step}: {min(found)} gave the first non-finite value (loss {total:g})")
        if not torch.isfinite(torch.tensor(total)):
            raise NotFinite(f"step {step}: the loss is {total:g}, though every op gave finite values")
