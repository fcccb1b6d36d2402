"""The shapes to measure: parts of ops that the search may need, the most useful first.

For each op these are all compositions of degrees over its dims, for 1 to W workers, and all sizes
of a micro-batch. Parts of a layout differ by at most one position in a dim; a step waits for the
largest, so only that one is measured. Parts with equal `OpKey` are measured once.

For each of these batch sizes, five eighths of it on one worker is measured, too. No plan needs it;
it gives the regression sizes between the powers of two, where matrix products of fewer than 16
rows, for example, are slower.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from parallel.cluster.op_key import OpKey
from parallel.graph import Graph
from parallel.graph.ops import Op, Part
from parallel.plans import Layout

MICRO_BATCHES = (1, 2, 4, 8)
"""Micro-batches that the search tries; for schemes b and c, the number of workers is added."""


@dataclass(frozen=True)
class OpShape:
    """A part to measure; it stands for all parts with the same key."""

    op: str
    part: Part
    key: OpKey


def compositions(dims: str, parts: int) -> Iterator[dict[str, int]]:
    """Yield all degrees over `dims` whose product is `parts`."""
    if not dims:
        if parts == 1:
            yield {}
        return
    for degree in range(1, parts + 1):
        if parts % degree == 0:
            for rest in compositions(dims[1:], parts // degree):
                yield {dims[0]: degree, **rest}


def op_shapes(
    graph: Graph, batch_size: int, workers: int, micro_batches: Sequence[int] = MICRO_BATCHES
) -> Mapping[str, Sequence[OpShape]]:
    """Return the shapes of each op, the most useful first.

    The whole batch comes before micro-batches, one or all workers before some, large before small.
    """
    counts = sorted({m for m in (*micro_batches, workers) if batch_size % m == 0})
    result = {}
    for op in graph:
        ranked: dict[OpKey, tuple[tuple[float, ...], OpShape]] = {}
        for m in counts:
            for size in range(1, workers + 1):
                for part in largest_parts(op, batch_size // m, size):
                    key = OpKey.of(op, part)
                    rank = (m, size not in (1, workers), -key.multiply_adds, -key.elements_out)
                    if key not in ranked or rank < ranked[key][0]:
                        ranked[key] = rank, OpShape(op.name, part, key)
            if (between := 5 * batch_size // (8 * m)) >= 1:
                for part in largest_parts(op, between, 1):
                    key = OpKey.of(op, part)
                    ranked.setdefault(key, ((m, True, 0, 0), OpShape(op.name, part, key)))
        result[op.name] = [shape for _, shape in sorted(ranked.values(), key=lambda entry: entry[0])]
    return result


def largest_parts(op: Op, samples: int, size: int) -> Iterator[Part]:
    """Yield the largest part of each possible composition over `size` workers."""
    for degrees in compositions(op.dims, size):
        if degrees["n"] <= samples and all(d <= op.extent(dim) for dim, d in degrees.items() if dim != "n"):
            # cut() leaves the larger pieces at the end, so the last worker's is the largest in
            # every dim.
            layout = Layout(on=tuple(range(math.prod(degrees.values()))), **degrees)
            yield layout.part(op, size - 1, (0, samples))


def model_runs(shapes: Mapping[str, Sequence[OpShape]]) -> list[dict[str, OpShape]]:
    """Distribute the shapes over runs through the model, at most one of each op per run."""
    longest = max((len(of_op) for of_op in shapes.values()), default=0)
    return [{op: of_op[i] for op, of_op in shapes.items() if i < len(of_op)} for i in range(longest)]
