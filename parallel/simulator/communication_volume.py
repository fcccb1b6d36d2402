"""How many numbers every worker sends and receives in an exchange or sync, without a loop over pairs of workers.

A piece is what worker v holds and worker w needs. Boxes are products of spans (`spans`), so that sums over all
workers are products of sums over spans:

    |held_v ∩ need_w|            = Π_d overlap_d(i_d(v), j_d(w))
    Σ_w |held_v ∩ need_w|        = Π_d Σ_j overlap_d(i_d(v), j)            w over all parts of the consumer's grid

What stays on a worker (w = v) is taken off, and what stays in its node is summed over the pairs of the node alone.
A piece is contiguous in a box when it is cut from it in n alone; then it is sent, or received, where it lies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from parallel.cluster import Cluster, Link
from parallel.simulator.partition import Spans


@dataclass(frozen=True, eq=False)
class Side:
    """Numbers by worker [w] that leave it and that come to it."""

    out: np.ndarray
    into: np.ndarray

    def load(self, link: Link, per_node: int, within: bool) -> int:
        """The largest load of a link, as `Link` defines it; `within` a node, or between nodes."""
        if not link.shared:
            return int(max(self.out.max(), self.into.max()))
        out = int(self.out.reshape(-1, per_node).sum(axis=1).max())
        return out if within else max(out, int(self.into.reshape(-1, per_node).sum(axis=1).max()))

    def __add__(self, other: Side) -> Side:
        return Side(self.out + other.out, self.into + other.into)


@dataclass(frozen=True, eq=False)
class Loads:
    """One exchange forward; backward is the same with `out` and `into` swapped."""

    inside: Side
    """Numbers [w] that stay in the node."""
    between: Side
    """Numbers [w] that cross nodes."""
    own: np.ndarray
    """Numbers [w] that the worker holds and needs itself."""
    scattered: Side
    """Numbers [w] of pieces that are not contiguous in what their sender holds, and in what their receiver needs."""
    wanted: np.ndarray
    """Numbers [w] in the boxes that are needed."""
    held: np.ndarray
    """Numbers [w] in the boxes that are held."""

    @property
    def moving(self) -> Side:
        """Numbers [w] that leave and come."""
        return self.inside + self.between

    @property
    def workers(self) -> tuple[int, ...]:
        """Those that hold or need a part: the runtime starts the exchange on all of them. None if nothing moves."""
        if not self.moving.out.any():
            return ()
        return tuple(np.flatnonzero(self.held + self.wanted).tolist())


@dataclass(frozen=True, eq=False)
class Held:
    """Boxes, and who holds or needs them: worker on[i] that of part i."""

    spans: Spans
    on: np.ndarray


def exchange_loads(held: Held, need: Held, cluster: Cluster) -> Loads:
    """The loads of moving a tensor from the boxes that are held to those that are needed."""
    size, per_node = cluster.workers, cluster.workers_per_node
    overlaps = [_overlap(held.spans, need.spans, d) for d in range(len(held.spans.starts))]
    out, into = _totals(overlaps, held, need, size)
    uncut = [o * (o == held.spans.sizes[d][:, None]) if d else o for d, o in enumerate(overlaps)]
    put = [o * (o == need.spans.sizes[d][None, :]) if d else o for d, o in enumerate(overlaps)]
    straight_out, straight_into = _totals(uncut, held, need, size)[0], _totals(put, held, need, size)[1]

    both, at_held, at_need = np.intersect1d(held.on, need.on, assume_unique=True, return_indices=True)
    own, own_uncut, own_put = (np.zeros(size, dtype=np.int64) for _ in range(3))
    for tables, result in ((overlaps, own), (uncut, own_uncut), (put, own_put)):
        result[both] = _product([table[i[at_held], j[at_need]] for table, i, j in zip(
            tables, held.spans.index, need.spans.index, strict=True)], len(both))

    moving, own_side = Side(out - own, into - own), Side(own, own)
    inside = _inside(held, need, cluster) if _crosses(held, need, per_node) else Side(out, into)
    inside = Side(inside.out - own_side.out, inside.into - own_side.into)
    between = Side(moving.out - inside.out, moving.into - inside.into)
    scattered = Side(moving.out - (straight_out - own_uncut), moving.into - (straight_into - own_put))
    return Loads(inside, between, own, scattered, _volumes(need, size), _volumes(held, size))


def _overlap(held: Spans, need: Spans, d: int) -> np.ndarray:
    """Common positions in dim d of every span held with every span needed [i, j]."""
    stops = np.minimum(held.stops[d][:, None], need.stops[d][None, :])
    starts = np.maximum(held.starts[d][:, None], need.starts[d][None, :])
    return np.maximum(stops - starts, 0)


def _totals(tables: list[np.ndarray], held: Held, need: Held, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums over all partners, of what each worker holds and of what each needs [w]."""
    out, into = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    out[held.on] = _product([t.sum(axis=1)[i] for t, i in zip(tables, held.spans.index, strict=True)], len(held.on))
    into[need.on] = _product([t.sum(axis=0)[j] for t, j in zip(tables, need.spans.index, strict=True)], len(need.on))
    return out * need.spans.copies, into * held.spans.copies


def _product(factors: list[np.ndarray], size: int) -> np.ndarray:
    result = np.ones(size, dtype=np.int64)
    for factor in factors:
        result *= factor
    return result


def _crosses(held: Held, need: Held, per_node: int) -> bool:
    nodes = np.concatenate([held.on, need.on]) // per_node
    return bool(nodes.min() != nodes.max())


def _inside(held: Held, need: Held, cluster: Cluster) -> Side:
    """Sums over the partners of the same node, the worker itself among them."""
    shape = (cluster.nodes, cluster.workers_per_node)
    pairs = np.ones((*shape, shape[1]), dtype=np.int64)  # [node, holder, needer]
    for d in range(len(held.spans.starts)):
        ends = []
        for spans, on in ((held.spans, held.on), (need.spans, need.on)):
            start, stop = np.zeros(cluster.workers, dtype=np.int64), np.zeros(cluster.workers, dtype=np.int64)
            start[on], stop[on] = spans.starts[d][spans.index[d]], spans.stops[d][spans.index[d]]
            ends.append((start.reshape(shape), stop.reshape(shape)))
        (start_h, stop_h), (start_n, stop_n) = ends
        pairs *= np.maximum(np.minimum(stop_h[:, :, None], stop_n[:, None, :])
                            - np.maximum(start_h[:, :, None], start_n[:, None, :]), 0)
    return Side(pairs.sum(axis=2).reshape(-1), pairs.sum(axis=1).reshape(-1))


def _volumes(held: Held, size: int) -> np.ndarray:
    spans, result = held.spans, np.zeros(size, dtype=np.int64)
    result[held.on] = _product([np.maximum(sizes, 0)[i] for sizes, i in zip(spans.sizes, spans.index, strict=True)],
                               len(held.on))
    return result


def sum_loads(group: np.ndarray, numbers: np.ndarray, on: np.ndarray, holders: int, cluster: Cluster,
              ) -> tuple[Side, Side]:
    """Loads inside nodes and between them when every group of `holders` workers sums a tensor that all its workers
    hold, each its shard: worker on[i] is of group[i], whose tensor has numbers[i]. To gather the shards takes as much.
    """
    node = on // cluster.workers_per_node
    key = group * cluster.nodes + node
    near = np.bincount(key)[key]  # of the group and of the node, itself among them
    sides = []
    for peers in (near - 1, holders - near):
        moved = np.zeros(cluster.workers, dtype=np.int64)
        moved[on] = -(-peers * numbers // holders)
        sides.append(Side(moved, moved))
    return sides[0], sides[1]
