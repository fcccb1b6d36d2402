"""Find where the training of a plan first differs from plain PyTorch: step, op, worker and box.

Both sides run again with an observer. Each step is compared in this order:

    1. the outputs of all ops, in forward order
    2. the gradients of each op's parameters and inputs, from the last op to the first
    3. the updated weights

So the first difference cannot be a consequence of an error in another op. An op is compared if
plain PyTorch computes it in a layer of the same name. Function calls, as in a residual network,
have no layer; the ops that read their outputs cover them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from parallel.graph import Graph
from parallel.graph.box import Box, Span
from parallel.runtime.instrumentation.observe import Observer

NEGLIGIBLE = 1e-4
"""Fraction of the largest magnitude among all gradients (or all weights) below which a tensor is
considered rounding error."""


@dataclass(frozen=True)
class Piece:
    """A worker's part of the output of an op, or of the gradient of that output."""

    box: Box
    """[n, …]. Its span of samples may be that of another micro-batch; `rows` has the positions."""
    rows: Tensor
    """int64 [n], positions in the global batch."""
    tensor: Tensor


PlainPiece = tuple[tuple[Span, ...], Tensor, Tensor]
"""Spans of the box, rows and tensor of a `Piece`."""


class Recorder(Observer):
    """Records the outputs of a step and their gradients."""

    def __init__(self) -> None:
        self.outputs: dict[str, list[Piece]] = {}
        self.gradients: dict[str, list[Piece]] = {}

    def clear(self) -> None:
        """Discard the records of the last step."""
        self.outputs, self.gradients = {}, {}

    def output(self, op: str, box: Box, rows: Tensor, tensor: Tensor) -> None:
        _record(self.outputs, op, box, rows, tensor)

    def output_gradient(self, op: str, box: Box, rows: Tensor, gradient: Tensor) -> None:
        _record(self.gradients, op, box, rows, gradient)


def _record(pieces: dict[str, list[Piece]], op: str, box: Box, rows: Tensor, tensor: Tensor) -> None:
    if len(tensor) == len(rows):  # otherwise a sum over samples, which no layer computes
        pieces.setdefault(op, []).append(Piece(box, rows.cpu(), tensor.to("cpu", copy=True)))


Recorded = tuple[Mapping[str, Sequence[Piece]], Mapping[str, Sequence[Piece]]]
"""One worker's outputs and gradients."""


def to_plain(pieces: Mapping[str, Sequence[Piece]]) -> dict[str, list[PlainPiece]]:
    """Return pieces by op as values that workers can send each other."""
    return {
        op: [(piece.box.spans, piece.rows, piece.tensor) for piece in of_op] for op, of_op in pieces.items()
    }


def from_plain(pieces: Mapping[str, Sequence[PlainPiece]]) -> dict[str, list[Piece]]:
    """Return the pieces that `to_plain` made these values of."""
    return {
        op: [Piece(Box(spans), rows, tensor) for spans, rows, tensor in of_op] for op, of_op in pieces.items()
    }


@dataclass(frozen=True)
class Place:
    """Location and size of a difference."""

    what: str
    """Computation: `forward of pool2`."""
    where: str
    """Worker and box: `worker 1, box [0:16, 0:192, 3:7, 0:7]`."""
    difference: float
    """Relative to the largest magnitude of the reference's values."""

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.what, self.where))) + f": {self.difference:.1e}"


def compare_step(
    graph: Graph,
    passes: Sequence[Span],
    ours: Sequence[Recorded],
    theirs: Recorded,
    gradients: Mapping[str, tuple[Tensor, Tensor]],
    tolerance: float,
) -> Place | None:
    """Return the first difference above `tolerance` in forward and backward of a step, or None.

    `passes` are the spans of samples between updates of the weights. `ours` has a record for each
    worker. `gradients` has the gradients of the last pass by parameter (`conv1.weight`): ours and
    theirs.
    """
    for number, samples in enumerate(passes):
        known = gradients if number == len(passes) - 1 else {}
        found = _compare_pass(
            graph,
            [(_only(samples, outputs), _only(samples, back)) for outputs, back in ours],
            (_only(samples, theirs[0]), _only(samples, theirs[1])),
            known,
            tolerance,
        )
        if found is not None:
            return found
    return None


def compare_named(what: str, pairs: Mapping[str, tuple[Tensor, Tensor]], tolerance: float) -> Place | None:
    """Return the first pair of tensors, ours and theirs, that differ by more than `tolerance`, or
    None."""
    scale = magnitude(theirs for _, theirs in pairs.values())
    for name, pair in pairs.items():
        if not (difference := relative(*pair, scale)) <= tolerance:
            return Place(f"{what} {name}", "", difference)
    return None


def relative(ours: Tensor, theirs: Tensor, scale: float) -> float:
    """Return the largest difference of two tensors, relative to the second's largest magnitude.

    The divisor is at least `NEGLIGIBLE` times `scale`, the largest magnitude among all tensors of
    the same kind. Otherwise a gradient that consists of rounding errors, such as that of a bias
    before a batch normalisation, would be compared with itself.
    """
    return (
        (ours - theirs).abs().max() / theirs.abs().max().clamp_min(max(NEGLIGIBLE * scale, 1e-300))
    ).item()


def magnitude(tensors: Iterable[Tensor]) -> float:
    """Return the largest absolute value in all tensors."""
    return max((tensor.abs().max().item() for tensor in tensors), default=0.0)


def _only(samples: Span, pieces: Mapping[str, Sequence[Piece]]) -> dict[str, list[Piece]]:
    """Return the pieces with only the rows of the given samples."""
    result: dict[str, list[Piece]] = {}
    for op, of_op in pieces.items():
        for piece in of_op:
            inside = (piece.rows >= samples[0]) & (piece.rows < samples[1])
            if inside.any():
                result.setdefault(op, []).append(Piece(piece.box, piece.rows[inside], piece.tensor[inside]))
    return result


def _compare_pass(
    graph: Graph,
    ours: Sequence[Recorded],
    theirs: Recorded,
    gradients: Mapping[str, tuple[Tensor, Tensor]],
    tolerance: float,
) -> Place | None:
    for name in graph.names:
        found = _compare(name, [outputs for outputs, _ in ours], theirs[0], tolerance, adds=True)
        if found is not None:
            return Place(f"forward of {name}", *found)
    scale = magnitude(theirs for _, theirs in gradients.values())
    readers = {op.name: [other.name for other in graph if op.name in other.inputs] for op in graph}
    waiting = {name: set(names) for name, names in readers.items()}
    for op in reversed(graph.ops):
        for name in op.parameters:
            pair = gradients.get(f"{op.name}.{name}")
            if pair is not None and not (difference := relative(*pair, scale)) <= tolerance:
                return Place(f"backward of {op.name}, gradient of its {name}", "", difference)
        for producer in op.inputs:
            if producer not in waiting:
                continue  # the images
            waiting[producer].discard(op.name)
            found = None
            if not waiting[producer]:
                found = _compare(producer, [seen for _, seen in ours], theirs[1], tolerance, adds=False)
            if found is not None:
                return Place(
                    f"backward of {' or '.join(readers[producer])}, gradient of its input {producer}", *found
                )
    return None


def _compare(
    op: str,
    ours: Sequence[Mapping[str, Sequence[Piece]]],
    theirs: Mapping[str, Sequence[Piece]],
    tolerance: float,
    adds: bool,
) -> tuple[str, float] | None:
    """Return where the workers' pieces differ most from the whole tensor, and the difference.

    None if they do not differ, or if the reference does not have the tensor. With `adds`, pieces of
    the same box are partial sums.
    """
    if op not in theirs:
        return None
    rows = torch.cat([piece.rows for piece in theirs[op]])
    if len(rows.unique()) != len(rows):
        return None  # a layer that is used more than once
    whole = torch.zeros(int(rows.max()) + 1, *theirs[op][0].tensor.shape[1:], dtype=torch.float64)
    for piece in theirs[op]:
        whole[piece.rows] = piece.tensor.double()
    scale = whole.abs().max().clamp_min(1e-300)
    total = _summed(op, ours, whole.shape) if adds else None
    worst: tuple[str, float] | None = None
    for worker, pieces in enumerate(ours):
        for piece in pieces.get(op, ()):
            index = _index(piece)
            value = piece.tensor.double() if total is None else total[index]
            apart = (value - whole[index]).abs() / scale
            apart = torch.nan_to_num(apart, nan=float("inf"), posinf=float("inf"))
            largest = apart.max().item() if apart.numel() else 0.0
            if largest > tolerance and (worst is None or largest > worst[1]):
                who = f"worker {worker}" + ("" if total is None else " and others, a sum of parts")
                worst = f"{who}, box {_box(apart > tolerance, piece)}", largest
    return worst


def _summed(op: str, ours: Sequence[Mapping[str, Sequence[Piece]]], shape: Sequence[int]) -> Tensor | None:
    """Return the sum of all pieces, or None if none overlap."""
    total, times = torch.zeros(*shape, dtype=torch.float64), torch.zeros(*shape, dtype=torch.int64)
    for pieces in ours:
        for piece in pieces.get(op, ()):
            total[_index(piece)] += piece.tensor.double()
            times[_index(piece)] += 1
    return total if int(times.max()) > 1 else None


def _index(piece: Piece) -> tuple[Tensor, ...]:
    """Return the index of the piece in the whole tensor."""
    spans = [piece.rows, *(torch.arange(*span) for span in piece.box.spans[1:])]
    return tuple(span.view(*(-1 if i == j else 1 for j in range(len(spans)))) for i, span in enumerate(spans))


def _box(wrong: Tensor, piece: Piece) -> Box:
    """Return the smallest box of the whole tensor that contains all wrong elements of the piece."""
    places = wrong.nonzero()
    low, high = places.min(dim=0).values.tolist(), places.max(dim=0).values.tolist()
    rows = sorted((int(piece.rows[low[0]]), int(piece.rows[high[0]])))
    starts = [0, *(start for start, _ in piece.box.spans[1:])]
    return Box(
        ((rows[0], rows[1] + 1), *((starts[i] + low[i], starts[i] + high[i] + 1) for i in range(1, len(low))))
    )
