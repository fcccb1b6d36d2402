"""The space of layouts that the search chooses from.

Decided ops are those whose split matters by itself: they have weights (convolutions, linear layers),
they pool, or they read the images. Every other op follows its producer, as in a plan file
(`plan.follow`), and so does an adaptive pooling that changes nothing.

    sizes        of blocks of workers: 1 … W up to 8 workers, beyond that divisors of W and powers of
                 two; a block is at most a node, or whole nodes, or all workers
    candidates   of an op: every split of a size over the op's dims, size = n·c·k·h·w, on workers
                 0 … size − 1 in order; n at most the batch, the other degrees at most the extent of
                 the dim; only splits that the ops that follow allow
    plans        one candidate for each decided op: |candidates₁| · |candidates₂| · …

All blocks begin at worker 0, so that of any two, one contains the other. If all nodes are alike, every
chain of nested aligned blocks is one of these with the workers renumbered. Blocks side by side belong
to pipelines (`pipelines`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from parallel.cluster import Cluster
from parallel.config import require
from parallel.graph import INPUT, Graph
from parallel.graph.ops import DIMS, Op
from parallel.graph.ops.pool import AdaptiveAvgPool2d, MaxPool2d
from parallel.plans import Layout, Plan, make_plan
from parallel.plans.layout import follow_degrees

Degrees = tuple[int, ...]
"""Of n, c, k, h, w."""
SMALL = 8
"""Workers up to which blocks of any size are allowed."""


def decided(op: Op) -> bool:
    """Return whether the search chooses the layout of this op."""
    if isinstance(op, AdaptiveAvgPool2d):
        return not op.identity
    return bool(op.parameters and "k" in op.dims) or isinstance(op, MaxPool2d) or INPUT in op.inputs


def block_sizes(workers: int, workers_per_node: int) -> tuple[int, ...]:
    """Return the sizes of the blocks of workers for ops."""
    if workers <= SMALL:
        sizes = set(range(1, workers + 1))
    else:
        sizes = {size for size in range(1, workers + 1) if workers % size == 0 or size & (size - 1) == 0}
    return tuple(
        sorted(s for s in sizes if s <= workers_per_node or s % workers_per_node == 0 or s == workers)
    )


@lru_cache(maxsize=4096)
def divisors(size: int) -> tuple[int, ...]:
    """Return the divisors of a size, in increasing order."""
    return tuple(d for d in range(1, size + 1) if size % d == 0)


def splits(size: int, limits: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield all degrees, one for each limit and none above it, whose product is `size`."""
    if len(limits) == 1:
        if size <= limits[0]:
            yield (size,)
        return
    for first in divisors(size):
        if first <= limits[0]:
            for rest in splits(size // first, limits[1:]):
                yield (first, *rest)


@dataclass(frozen=True, eq=False)
class Space:
    """The candidates of every decided op, and the degrees of the ops that follow. Made by `space_of`."""

    graph: Graph
    batch_size: int
    workers: int
    sizes: tuple[int, ...]
    leaders: Mapping[str, str]
    """The decided op that each op follows; of a decided op itself."""
    candidates: Mapping[str, tuple[Degrees, ...]]
    """By decided op."""
    degrees: Mapping[str, tuple[Degrees, ...]]
    """By op: its degrees for each candidate of its leader."""

    @cached_property
    def decided(self) -> tuple[str, ...]:
        """Return the decided ops, in the graph's order."""
        return tuple(self.candidates)

    @cached_property
    def count(self) -> int:
        """Return the number of plans in the space."""
        return math.prod(len(found) for found in self.candidates.values())

    @cached_property
    def _index(self) -> Mapping[str, Mapping[Degrees, int]]:
        return {
            name: {degrees: i for i, degrees in enumerate(found)} for name, found in self.candidates.items()
        }

    @cached_property
    def _blocks(self) -> dict[int, tuple[int, ...]]:
        return {size: tuple(range(size)) for size in self.sizes}

    @cached_property
    def _layouts(self) -> dict[tuple[int, Degrees], Layout]:
        return {}

    def layout(self, op: str, index: int) -> Layout:
        """Return the layout of an op whose leader has candidate `index`."""
        degrees = self.degrees[op][index]
        key = math.prod(degrees), degrees
        if key not in self._layouts:
            self._layouts[key] = Layout(self._blocks[key[0]], *degrees)
        return self._layouts[key]

    def plan(self, chosen: Mapping[str, int]) -> Plan:
        """Return the plan with candidate `chosen[op]` of every decided op."""
        return make_plan(
            self.graph, self.workers, {op: self.layout(op, index) for op, index in chosen.items()}
        )

    def find(self, plan: Plan) -> dict[str, int] | None:
        """Return the candidates of a plan, or None if it is not in the space."""
        if plan.workers != self.workers or plan.micro_batches != 1 or plan.scheme != "a":
            return None
        chosen: dict[str, int] = {}
        for op in self.graph:
            layout, leader = plan[op.name], self.leaders[op.name]
            if op.name == leader:
                index = self._index[leader].get(layout.degrees)
                if index is None:
                    return None
                chosen[leader] = index
            degrees = self.degrees[op.name][chosen[leader]]
            if layout.degrees != degrees or layout.on != self._blocks[math.prod(degrees)]:
                return None
        return chosen


def space_of(
    graph: Graph,
    batch_size: int,
    workers: int,
    cluster: Cluster,
    dims: str = DIMS,
    sizes: tuple[int, ...] | None = None,
) -> Space:
    """Return the space of plans for `graph` on `workers` workers of the cluster.

    Ops are split only in `dims`, on blocks of the given sizes (None: all aligned ones). Raises
    `ValueError` if an op has no candidate.
    """
    require(
        workers <= cluster.workers,
        "workers",
        workers,
        f"is more than cluster {cluster.name} has: {cluster.workers}",
    )
    require(bool(dims) and set(dims) <= set(DIMS), "search.dims", dims, f"must be some of the dims {DIMS}")
    blocks = sizes if sizes is not None else block_sizes(workers, cluster.workers_per_node)
    for size in blocks:
        require(1 <= size <= workers, "search.sizes", size, f"must be from 1 to workers={workers}")
    leaders = leaders_of(graph)
    candidates: dict[str, tuple[Degrees, ...]] = {}
    degrees: dict[str, tuple[Degrees, ...]] = {}
    for name in dict.fromkeys(leaders.values()):
        op, group = graph[name], [o for o in graph if leaders[o.name] == name]
        limits = tuple(
            1 if d not in op.dims or d not in dims else batch_size if d == "n" else op.extent(d) for d in DIMS
        )
        cut = [found for size in blocks for found in splits(size, limits)]
        rows = [row for found in cut if (row := _followed(group, found, batch_size)) is not None]
        if not rows:
            most = {d: limit for d, limit in zip(DIMS, limits, strict=True) if d in dims and d in op.dims}
            raise ValueError(
                f"search: no layout of {name} is left by sizes={list(blocks)}, dims={dims} and "
                f"trainer.batch_size={batch_size}: the op can be cut at most into {most or 'one part'}"
            )
        for i, member in enumerate(group):
            degrees[member.name] = tuple(row[i] for row in rows)
        candidates[name] = degrees[name]
    return Space(graph, batch_size, workers, tuple(blocks), leaders, candidates, degrees)


def leaders_of(graph: Graph) -> dict[str, str]:
    """Return the decided op that each op follows, through its first inputs."""
    leaders: dict[str, str] = {}
    for op in graph:
        leaders[op.name] = op.name if decided(op) else leaders[op.inputs[0]]
    return leaders


def _followed(group: list[Op], degrees: Degrees, batch_size: int) -> tuple[Degrees, ...] | None:
    """Return the degrees of all ops of a group, the leader first, or None if one cannot be split so."""
    row = {group[0].name: degrees}
    for op in group[1:]:
        found = follow_degrees(op, row[op.inputs[0]])
        if found[0] > batch_size:
            return None
        row[op.name] = found
    return tuple(row.values())
