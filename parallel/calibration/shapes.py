"""Which works the search can ask for: what is to be measured, the most useful first.

For every op: all compositions of degrees over its dims, for 1 to W workers, and all sizes of a micro-batch. Of the
parts of a layout, which differ by one position at most, it is the largest that a step waits for. Parts of one shape
are one key, wherever they lie. And of each of these sizes five eighths on one worker, which no plan needs: other
batches have sizes in between, and matrix products of fewer than 16 rows, say, take longer than those of 16.
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
"""Those that the search tries; and as many as there are workers, for the schemes b and c."""


@dataclass(frozen=True)
class Need:
    """A part to be measured, one for all parts of its key."""

    op: str
    part: Part
    key: OpKey


def compositions(dims: str, parts: int) -> Iterator[dict[str, int]]:
    """All degrees over `dims` whose product is `parts`."""
    if not dims:
        if parts == 1:
            yield {}
        return
    for degree in range(1, parts + 1):
        if parts % degree == 0:
            for rest in compositions(dims[1:], parts // degree):
                yield {dims[0]: degree, **rest}


def needed(graph: Graph, batch_size: int, workers: int,
           micro_batches: Sequence[int] = MICRO_BATCHES) -> Mapping[str, Sequence[Need]]:
    """Per op, its works: the whole batch before micro-batches, then one and all workers before some, then by size."""
    counts = sorted({m for m in (*micro_batches, workers) if batch_size % m == 0})
    found = {}
    for op in graph:
        ranked: dict[OpKey, tuple[tuple[float, ...], Need]] = {}
        for m in counts:
            for size in range(1, workers + 1):
                for part in parts(op, batch_size // m, size):
                    key = OpKey.of(op, part)
                    rank = (m, size not in (1, workers), -key.multiply_adds, -key.elements_out)
                    if key not in ranked or rank < ranked[key][0]:
                        ranked[key] = rank, Need(op.name, part, key)
            if (between := 5 * batch_size // (8 * m)) >= 1:
                for part in parts(op, between, 1):
                    key = OpKey.of(op, part)
                    ranked.setdefault(key, ((m, True, 0, 0), Need(op.name, part, key)))
        found[op.name] = [need for _, need in sorted(ranked.values(), key=lambda entry: entry[0])]
    return found


def parts(op: Op, samples: int, size: int) -> Iterator[Part]:
    """The largest part of every composition over `size` workers that the op and the samples can be cut into."""
    for degrees in compositions(op.dims, size):
        if degrees["n"] <= samples and all(d <= op.extent(dim) for dim, d in degrees.items() if dim != "n"):
            # cut() leaves the larger pieces at the end, so the last worker's is the largest in every dim.
            layout = Layout(on=tuple(range(math.prod(degrees.values()))), **degrees)
            yield layout.part(op, size - 1, (0, samples))


def passes(needs: Mapping[str, Sequence[Need]]) -> list[dict[str, Need]]:
    """The works dealt out to runs through the model, each of which has at most one of every op."""
    longest = max((len(of) for of in needs.values()), default=0)
    return [{op: of[i] for op, of in needs.items() if i < len(of)} for i in range(longest)]
