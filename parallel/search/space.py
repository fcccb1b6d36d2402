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

On a cluster whose nodes have different numbers of workers, or whose workers have different speeds:

    order        blocks are the first workers in order of speed, the fastest first, in place of
                 0 … size − 1
    sizes        any up to 8 workers; beyond that also those at which a node or a speed ends
    candidates   also, on every size, a cut by weights in n, and of linear layers one in c: in
                 proportion to what the workers compute (`speed_weights`)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from parallel.cluster import Cluster
from parallel.config import require
from parallel.graph import INPUT, Graph
from parallel.graph.box import Cut, degree, leaves_none_empty, normal
from parallel.graph.ops import DIMS, Op
from parallel.graph.ops.pool import AdaptiveAvgPool2d, MaxPool2d
from parallel.plans import Layout, Plan, make_plan
from parallel.plans.layout import follow_cuts
from parallel.simulator.partition import Floats, Ints

Cuts = tuple[Cut, ...]
"""Cuts along n, c, k, h, w."""
SMALL = 8
"""Workers up to which blocks of any size are allowed."""
MOST_TOTAL = 64
"""Largest sum of weights, or four times the number of parts if that is more."""
TOLERANCE = 0.02
"""Time by which rounded weights may prolong the slowest part."""


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


def order_of(workers: int, cluster: Cluster) -> tuple[int, ...]:
    """Return the workers in the order in which blocks take them: the fastest first."""
    return tuple(sorted(range(workers), key=lambda worker: -cluster.speed_of(worker)))


def uneven_block_sizes(order: Sequence[int], cluster: Cluster) -> tuple[int, ...]:
    """Return the sizes of the blocks on a cluster whose nodes or workers differ."""
    workers = len(order)
    sizes = set(block_sizes(workers, workers))
    kinds = [(cluster.node_of(worker), cluster.speed_of(worker)) for worker in order]
    return tuple(sorted(sizes | {size for size in range(1, workers) if kinds[size - 1] != kinds[size]}))


def speed_weights(block: Sequence[int], cluster: Cluster) -> Cut:
    """Return the weights of parts in proportion to what the workers of a block compute.

    A worker computes at its speed, divided by the contention of the block's workers on its node. The
    weights are the smallest whole numbers, with a sum of at most MOST_TOTAL, for which the slowest
    part takes at most TOLERANCE longer than in exact proportion.
    """
    nodes = [cluster.node_of(worker) for worker in block]
    speeds = np.array(
        [
            cluster.speed_of(worker) / cluster.contention_factor(nodes.count(node))
            for worker, node in zip(block, nodes, strict=True)
        ]
    )
    shares = speeds / speeds.sum()
    found: list[tuple[float, tuple[int, ...]]] = []
    for total in range(len(block), max(MOST_TOTAL, 4 * len(block)) + 1):
        weights = np.maximum(1, _rounded(shares, total))
        longer = float((weights / weights.sum() / shares).max())
        found.append((longer, tuple(weights.tolist())))
        if longer <= 1 + TOLERANCE:
            break
    return normal(min(found)[1])


def _rounded(shares: Floats, total: int) -> Ints:
    """Return whole numbers with this sum, in proportion to the shares: largest remainders."""
    down = np.floor(shares * total).astype(np.int64)
    order = np.argsort(down - shares * total, kind="stable")
    down[order[: total - int(down.sum())]] += 1
    return down


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
    """The candidates of every decided op, and the cuts of the ops that follow. Made by `space_of`."""

    graph: Graph
    batch_size: int
    workers: int
    order: tuple[int, ...]
    """The workers in the order in which blocks take them."""
    sizes: tuple[int, ...]
    leaders: Mapping[str, str]
    """The decided op that each op follows; of a decided op itself."""
    candidates: Mapping[str, tuple[Cuts, ...]]
    """By decided op."""
    cuts: Mapping[str, tuple[Cuts, ...]]
    """By op: its cuts for each candidate of its leader."""

    @cached_property
    def decided(self) -> tuple[str, ...]:
        """Decided ops, in the graph's order."""
        return tuple(self.candidates)

    @cached_property
    def count(self) -> int:
        """Number of plans in the space."""
        return math.prod(len(found) for found in self.candidates.values())

    @cached_property
    def _index(self) -> Mapping[str, Mapping[Cuts, int]]:
        return {name: {cuts: i for i, cuts in enumerate(found)} for name, found in self.candidates.items()}

    @cached_property
    def _blocks(self) -> dict[int, tuple[int, ...]]:
        return {size: self.order[:size] for size in self.sizes}

    @cached_property
    def _layouts(self) -> dict[Cuts, Layout]:
        return {}

    @property
    def in_words(self) -> str:
        """Description of the plans for a certificate."""
        weighted = any(
            isinstance(by, tuple) for found in self.candidates.values() for row in found for by in row
        )
        return f"{self.count:.3g} plans on nested blocks" + (
            ", cut evenly or by what the workers compute" if weighted else ""
        )

    def layout(self, op: str, index: int) -> Layout:
        """Return the layout of an op whose leader has candidate `index`."""
        cuts = self.cuts[op][index]
        if cuts not in self._layouts:
            self._layouts[cuts] = Layout(self._blocks[math.prod(map(degree, cuts))], *cuts)
        return self._layouts[cuts]

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
                index = self._index[leader].get(layout.cuts)
                if index is None:
                    return None
                chosen[leader] = index
            cuts = self.cuts[op.name][chosen[leader]]
            if layout.cuts != cuts or layout.on != self._blocks[len(layout.on)]:
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
    order = tuple(range(workers)) if cluster.even else order_of(workers, cluster)
    if sizes is not None:
        blocks = sizes
    elif cluster.even:
        blocks = block_sizes(workers, cluster.workers_per_node)
    else:
        blocks = uneven_block_sizes(order, cluster)
    for size in blocks:
        require(1 <= size <= workers, "search.sizes", size, f"must be from 1 to workers={workers}")
    leaders = leaders_of(graph)
    candidates: dict[str, tuple[Cuts, ...]] = {}
    cuts: dict[str, tuple[Cuts, ...]] = {}
    weights = () if cluster.even else tuple(speed_weights(order[:size], cluster) for size in blocks)
    for name in dict.fromkeys(leaders.values()):
        op, group = graph[name], [o for o in graph if leaders[o.name] == name]
        limits = tuple(
            1 if d not in op.dims or d not in dims else batch_size if d == "n" else op.extent(d) for d in DIMS
        )
        found: list[Cuts] = [split for size in blocks for split in splits(size, limits)]
        found += _by_weights(op, weights, limits)
        rows = [
            row for split in found if (row := _cuts_of_group(graph, group, split, batch_size)) is not None
        ]
        if not rows:
            most = {d: limit for d, limit in zip(DIMS, limits, strict=True) if d in dims and d in op.dims}
            raise ValueError(
                f"search: no layout of {name} is left by sizes={list(blocks)}, dims={dims} and "
                f"trainer.batch_size={batch_size}: the op can be cut at most into {most or 'one part'}"
            )
        for i, member in enumerate(group):
            cuts[member.name] = tuple(row[i] for row in rows)
        candidates[name] = cuts[name]
    return Space(graph, batch_size, workers, order, tuple(blocks), leaders, candidates, cuts)


def _by_weights(op: Op, weights: Sequence[Cut], limits: tuple[int, ...]) -> list[Cuts]:
    """Return the cuts of an op by weights, in n and, of a linear layer, in c."""
    found: list[Cuts] = []
    for by in weights:
        if isinstance(by, tuple) and leaves_none_empty(limits[0], by):
            found.append((by, 1, 1, 1, 1))
        linear = bool(op.parameters) and len(op.shape) == 1
        if isinstance(by, tuple) and linear and leaves_none_empty(limits[1], by):
            found.append((1, by, 1, 1, 1))
    return found


def leaders_of(graph: Graph) -> dict[str, str]:
    """Return the decided op that each op follows, directly or through others (`Graph.followed`)."""
    leaders: dict[str, str] = {}
    for op in graph:
        leaders[op.name] = op.name if decided(op) else leaders[graph.followed(op)]
    return leaders


def _cuts_of_group(graph: Graph, group: list[Op], cuts: Cuts, batch_size: int) -> tuple[Cuts, ...] | None:
    """Return the cuts of all ops of a group, the leader first, or None if one cannot be split so."""
    row = {group[0].name: cuts}
    for op in group[1:]:
        found = follow_cuts(op, row[graph.followed(op)])
        if not leaves_none_empty(batch_size, found[0]):
            return None
        row[op.name] = found
    return tuple(row.values())
