"""Costs of the stages of a pipeline: the cost model's seconds, added up over the ops of a stage.

A graph is cut into groups, each a decided op with the ops that follow it (`space.leaders_of`). A
stage is a run of groups on a block of workers. It may begin where a single tensor enters it: all
that it and later stages read from before is the output of the op right before it.
"""

from __future__ import annotations

import itertools
import math
from functools import cached_property
from typing import NamedTuple

from parallel.graph import INPUT, Graph
from parallel.graph.box import Cut
from parallel.graph.ops import Op
from parallel.plans import Layout, follow
from parallel.program.precision import ACTIVATION_BYTES, WIDE_BYTES
from parallel.search.pipeline_bounds import StageCost
from parallel.search.space import leaders_of
from parallel.simulator.cost_model import CostModel, Sync


class Block(NamedTuple):
    """The workers first … first + size − 1, and how their stage is split over them."""

    first: int
    size: int
    split: str
    """n: all ops in n; c: linear layers in c, the other ops in n."""


class Totals(NamedTuple):
    """Sums over the groups before each group, the last one over all: of a run, the difference of two."""

    forward: list[float]
    backward: list[float]
    accumulate: list[float]
    last_backward: list[float]
    """Backward of each group's last op: no sum."""

    def of(self, groups: range) -> tuple[float, float, float]:
        """Return forward, backward and accumulate of a run of groups."""
        first, end = groups.start, groups.stop
        return (
            self.forward[end] - self.forward[first],
            self.backward[end] - self.backward[first],
            self.accumulate[end] - self.accumulate[first],
        )


class StageCosts:
    """Costs of the stages of all pipelines for one graph, batch and cost model."""

    def __init__(self, graph: Graph, batch_size: int, cost_model: CostModel) -> None:
        self.graph, self.batch_size, self.cost_model = graph, batch_size, cost_model
        leaders = leaders_of(graph)
        self.groups: tuple[tuple[Op, ...], ...] = tuple(
            tuple(op for op in graph if leaders[op.name] == name) for name in dict.fromkeys(leaders.values())
        )
        self._single_tensor = _single_tensors(graph)
        self._group_of = {op.name: g for g, group in enumerate(self.groups) for op in group}
        position = {name: i for i, name in enumerate(graph.names)}
        last_ops = (max(position[op.name] for op in group) for group in self.groups)
        ends = list(itertools.accumulate(last_ops, max))
        self.may_begin: tuple[bool, ...] = tuple(
            g > 0 and ends[g - 1] < position[group[0].name] and group[0].name in self._single_tensor
            for g, group in enumerate(self.groups)
        )
        cluster = cost_model.cluster
        self._alone = cluster.contention_factor(1)
        self._node = [cluster.node_of(worker) for worker in range(cluster.workers)]
        self._op_seconds: dict[tuple[str, tuple[Cut, ...], int], tuple[float, float]] = {}
        self._accumulate: dict[tuple[str, tuple[Cut, ...]], float] = {}
        self._totals: dict[tuple[int, Block], Totals] = {}
        self._layouts: dict[tuple[int, Block], dict[str, Layout]] = {}
        self._syncs: dict[tuple[int, Block], Sync] = {}
        self._insides: dict[tuple[int, int, Block, bool], tuple[float, float]] = {}
        self._enters: dict[tuple[int, int, Block, Block], tuple[float, float]] = {}

    @cached_property
    def leaders(self) -> tuple[Op, ...]:
        """The decided op of each group."""
        return tuple(group[0] for group in self.groups)

    def splits_in_c(self, group: int, size: int) -> bool:
        """Return whether the group's leader is a linear layer with enough features."""
        op = self.leaders[group]
        return size > 1 and bool(op.parameters) and len(op.shape) == 1 and op.extent("c") >= size

    def layouts(self, group: int, block: Block) -> dict[str, Layout]:
        """Return the layouts of the group's ops on a block."""
        if (group, block) not in self._layouts:
            on = tuple(range(block.first, block.first + block.size))
            in_c = block.split == "c" and self.splits_in_c(group, block.size)
            found = {self.leaders[group].name: Layout(on, c=block.size) if in_c else Layout(on, n=block.size)}
            for op in self.groups[group][1:]:
                found[op.name] = follow(op, found[self.graph.followed(op)])
            self._layouts[group, block] = found
        return self._layouts[group, block]

    def totals(self, micro_batches: int, block: Block) -> Totals:
        """Return lower bounds of the seconds of computing for one micro-batch on a block."""
        block = block._replace(first=0) if not self.cost_model.cluster.speeds else block
        key = micro_batches, block
        if key not in self._totals:
            samples = self.batch_size // micro_batches
            forward, backward, accumulate = [0.0], [0.0], [0.0]
            last_backward = []
            for g, group in enumerate(self.groups):
                layouts = self.layouts(g, block)
                seconds = [self._seconds(op, layouts[op.name], samples) for op in group]
                forward.append(forward[g] + sum(forth for forth, _ in seconds))
                backward.append(backward[g] + sum(back for _, back in seconds))
                accumulate.append(accumulate[g] + sum(self._added(op, layouts[op.name]) for op in group))
                last_backward.append(seconds[-1][1])
            self._totals[key] = Totals(forward, backward, accumulate, last_backward)
        return self._totals[key]

    def _seconds(self, op: Op, layout: Layout, samples: int) -> tuple[float, float]:
        """Return forward and backward of a part with most samples, without contention for cores.

        If workers differ in speed: of the slowest part.
        """
        if self.cost_model.cluster.speeds:
            rows = layout.samples_by_index(samples)
            seconds = self.cost_model.part_seconds(op, layout, rows).max(axis=0)
            forward, backward = (self._alone * seconds).tolist()
            return forward, backward
        most = -(-samples // layout.degrees[0])
        key = op.name, layout.cuts[1:], most
        if key not in self._op_seconds:
            seconds = self.cost_model.part_seconds(op, _whole_in_n(layout), (most,)).max(axis=0)
            forward, backward = (self._alone * seconds).tolist()
            self._op_seconds[key] = forward, backward
        return self._op_seconds[key]

    def _added(self, op: Op, layout: Layout) -> float:
        """Return seconds of adding a micro-batch's gradients; a split in n leaves them whole."""
        if self.cost_model.cluster.speeds:
            return self._alone * self.cost_model.accumulate(op, layout)
        key = op.name, layout.cuts[1:]
        if key not in self._accumulate:
            self._accumulate[key] = self._alone * self.cost_model.accumulate(op, _whole_in_n(layout))
        return self._accumulate[key]

    def stage(
        self, groups: range, micro_batches: int, block: Block, before: Block | None, exact: bool
    ) -> StageCost:
        """Return the costs of a stage; `before` is the block of the previous stage.

        Unless `exact`, its exchanges are lower bounds, which take less time to work out.
        """
        first = groups.start
        totals = self.totals(micro_batches, block)
        forward, backward, accumulate = totals.of(groups)
        in_c = exact and block.split == "c"
        inside = [self.inside(g, micro_batches, block, g > first) for g in groups] if in_c else []
        enter = 0.0, 0.0
        if before:
            enter = (self._enter if exact else self._least_enter)(first, micro_batches, before, block)
        syncs = [self.sync(g, block) for g in groups]
        return StageCost(
            forward=forward,
            backward=backward,
            accumulate=accumulate,
            last_backward=totals.last_backward[groups.stop - 1],
            in_n=block.split == "n",
            inside_forward=sum(forth for forth, _ in inside),
            inside_backward=sum(back for _, back in inside),
            enter_forward=enter[0],
            enter_backward=enter[1],
            two_way=before is not None and self._node[block.first - 1] < self._node[block.first],
            sums=sum(sync.sum_s for sync in syncs),
            update=sum(sync.update_s for sync in syncs),
            gathers=sum(sync.gather_s for sync in syncs),
        )

    def sync(self, group: int, block: Block) -> Sync:
        """Return the group's sums, updates and gathers."""
        key = group, self._in_first_node(block)
        if key not in self._syncs:
            layouts = self.layouts(*key)
            syncs = [self.cost_model.sync(op, layouts[op.name]) for op in self.groups[group] if op.parameters]
            self._syncs[key] = Sync(
                sum(sync.sum_s for sync in syncs),
                sum(sync.update_s for sync in syncs),
                sum(sync.gather_s for sync in syncs),
            )
        return self._syncs[key]

    def inside(self, group: int, micro_batches: int, block: Block, enters: bool) -> tuple[float, float]:
        """Return the exchanges, forward and backward, by which the group's ops get their single inputs.

        That of its first op counts if the group `enters` from the same stage.
        """
        key = group, micro_batches, self._in_first_node(block), enters
        if key not in self._insides:
            found = [
                self._exchange(op, key[2], key[2], micro_batches)
                for op in self.groups[group]
                if op.name in self._single_tensor and (enters or op is not self.leaders[group])
            ]
            self._insides[key] = sum(forth for forth, _ in found), sum(back for _, back in found)
        return self._insides[key]

    def _least_enter(
        self, group: int, micro_batches: int, before: Block, block: Block
    ) -> tuple[float, float]:
        """Return lower bounds of `_enter`: the link's time for what one worker sends or receives."""
        cluster, node = self.cost_model.cluster, self._node
        producer, samples = self.graph[self.leaders[group].inputs[0]], self.batch_size // micro_batches
        in_c = block.split == "c" and self.splits_in_c(group, block.size)
        rows = max(-(-samples // before.size), samples if in_c else -(-samples // block.size))
        itemsize = WIDE_BYTES if producer.wide else ACTIVATION_BYTES[self.cost_model.precision]
        nbytes = rows * math.prod(producer.shape) * itemsize
        last_before, last = block.first - 1, block.first + block.size - 1
        if cluster.between is None or node[before.first] == node[last]:
            seconds = cluster.inside.seconds(nbytes)
        elif node[last_before] < node[block.first]:
            seconds = cluster.between.seconds(nbytes)
        else:  # some of it stays in a node: half of it at least takes one of the links
            seconds = min(cluster.inside.seconds(nbytes / 2), cluster.between.seconds(nbytes / 2))
        return seconds, seconds

    def _enter(self, group: int, micro_batches: int, before: Block, block: Block) -> tuple[float, float]:
        """Return the exchange, forward and backward, between a stage and the one before it."""
        near = self._in_first_node(before)
        block = block._replace(first=near.first + block.first - before.first)
        key = group, micro_batches, near, block
        if key not in self._enters:
            self._enters[key] = self._exchange(self.leaders[group], near, block, micro_batches)
        return self._enters[key]

    def _exchange(self, op: Op, before: Block, block: Block, micro_batches: int) -> tuple[float, float]:
        """Return the exchange, forward and backward, of an op's first input between two blocks."""
        producer = self.graph[op.inputs[0]]
        return self.cost_model.exchange(
            producer,
            self._layout(producer, before),
            op,
            self._layout(op, block),
            0,
            self.batch_size // micro_batches,
        )

    def _layout(self, op: Op, block: Block) -> Layout:
        return self.layouts(self._group_of[op.name], block)[op.name]

    def _in_first_node(self, block: Block) -> Block:
        """Return the block that lies in nodes as this one does, and begins in the first.

        If nodes or workers differ, it is the block itself.
        """
        cluster = self.cost_model.cluster
        return block._replace(first=block.first % cluster.workers_per_node) if cluster.even else block


def _whole_in_n(layout: Layout) -> Layout:
    """Return the layout of the parts with index 0 in n."""
    return Layout(layout.on[: len(layout.on) // layout.degrees[0]], 1, *layout.cuts[1:])


def _single_tensors(graph: Graph) -> frozenset[str]:
    """Return the ops from which on all that is read from before is the output of the op right before."""
    last_reader: dict[str, int] = {}
    for i, op in enumerate(graph):
        for name in op.inputs:
            last_reader[name] = i
    found, open_until = set[str](), last_reader[INPUT]
    for i, (before, op) in enumerate(itertools.pairwise(graph), start=1):
        # Tensors made before `before` must have had their last reader.
        if open_until < i and op.inputs == (before.name,):
            found.add(op.name)
        open_until = max(open_until, last_reader.get(before.name, 0))
    return frozenset(found)
