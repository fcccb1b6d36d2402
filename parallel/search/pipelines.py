"""Plans outside the space of nested blocks: pipelines, and one weird trick's passes. Each has a cheap lower bound, so
that few of them have to be simulated.

    pipelines   S ≥ 2 stages of consecutive decided ops on S blocks of W / S workers side by side; in a stage all ops
                are split in n, or linear layers in c; micro-batches 1, 2, 4 … ; fill-drain and 1F1B
    passes      schemes b and c (Krizhevsky 2014): the first ops split in n over all workers, computed once a step; the
                others, linear layers and what follows them, in c over all, in W passes

With f, b, t = f + b the seconds of a stage's forward and backward for one micro-batch (of one part of each op: at most
the price), x of an exchange with the stage before (the link's time alone), s and g of summing and gathering the
parameters of its ops, u of updating them, and i, j stages:

    pipeline ≥ Σ_{i<j} (t_i + 2·x_{i+1}) + m·t_j                        fill, stage j's m micro-batches, drain
    pipeline ≥ Σ_{i<j} (f_i + x_{i+1}) + m·t_j − b_j + b of j's last op + (s + g)_j     sums wait for the last one
    pipeline ≥ Σ_{i<j} (f_i + x_{i+1}) + m·t_j + g_j                    gathers come after all backwards
    pipeline ≥ Σ_{i<j} f_i + m·2·(x_j + y_j + x_{j+1}) + (s + g)_j      messages of a worker come one after the other;
                                                                        y: all features to linear layers split in c
    pipeline ≥ m·t_j + u_j + σ·(m·2·(x_j + y_j + x_{j+1}) + (s + g)_j)  and each takes σ of its time from computing

In passes, x is the exchange between the first ops and the others and y those among the others, both ways, exactly. One
pass is computed after the other (`schedule`: one in flight), so that only the x of other passes can be hidden:

    passes   ≥ Σ f of the first ops, whole batch, + x + W · Σ (t + y) of the others + b and g, or s and g, of
               the first ops
    passes   ≥ Σ f of the first ops + W · (x + Σ y) + s and g of the first ops
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from parallel.cluster import Cluster
from parallel.config import PIPELINES
from parallel.graph import INPUT, Graph
from parallel.graph.ops import Op
from parallel.plans import Layout, Plan, check_batch, follow, make_plan
from parallel.program.precision import ACTIVATION_BYTES
from parallel.search.op_bounds import some_part
from parallel.search.space import Degrees, leaders_of
from parallel.simulator.cost_model import CostModel, Sync


@dataclass(frozen=True)
class Proposal:
    """A plan that has not been made yet."""

    bound_s: float
    """Its timeline takes at least so long."""
    family: str
    make: Callable[[], Plan]


class Pipelines:
    """The proposals for one graph, batch and cluster."""

    def __init__(self, graph: Graph, batch_size: int, workers: int, cluster: Cluster, cost_model: CostModel) -> None:
        self.graph, self.batch_size, self.workers = graph, batch_size, workers
        self.cluster, self.cost_model = cluster, cost_model
        leaders = leaders_of(graph)
        self._groups = [(name, [op for op in graph if leaders[op.name] == name])
                        for name in dict.fromkeys(leaders.values())]
        self._trained = graph.trained_ops
        self._whole_batch = any(op.whole_batch for op in graph)
        self._seconds: dict[tuple[str, Degrees, int], tuple[float, float]] = {}
        self._syncs: dict[tuple[str, int], Sync] = {}
        self._next = dict(zip(graph.names, graph.names[1:], strict=False))

    def proposals(self, limit_s: float) -> Iterator[Proposal]:
        """Those whose bound is below the limit."""
        yield from self._pipelines(limit_s)
        yield from self._passes(limit_s)

    def _pipelines(self, limit_s: float) -> Iterator[Proposal]:
        for stages in range(2, min(self.workers, len(self._groups)) + 1):
            if self.workers % stages:
                continue
            block, m = self.workers // stages, 1
            while self.batch_size % m == 0 and block <= self.batch_size // m and (m == 1 or not self._whole_batch):
                for split in "nc" if any(self._in_c(group, block) for group in self._groups) and block > 1 else "n":
                    yield from self._cuts(stages, block, m, split, limit_s)
                m *= 2

    def _in_c(self, group: tuple[str, list[Op]], block: int) -> bool:
        """Whether the group is led by a linear layer with enough features."""
        op = self.graph[group[0]]
        return bool(op.parameters) and len(op.shape) == 1 and op.extent("c") >= block

    def _cuts(self, stages: int, block: int, m: int, split: str, limit_s: float) -> Iterator[Proposal]:
        samples, sigma = self.batch_size // m, self.cluster.overlap_slowdown
        if self._leaders_s(block, samples, split) * m / stages >= limit_s:
            return
        rows: list[tuple[float, ...]] = []
        handed: list[tuple[float, float]] = []
        for name, group in self._groups:
            in_c = split == "c" and self._in_c((name, group), block)
            degrees: Degrees = (1, block, 1, 1, 1) if in_c else (block, 1, 1, 1, 1)
            times = [self._times(op, degrees if op.name == name else None, samples, block) for op in group]
            sync = [self._sync(op, block) for op in group if not in_c]
            rows.append((sum(f for f, _ in times), sum(b for _, b in times), times[-1][1],
                         sum(s.sum_s + s.gather_s for s in sync), sum(s.update_s for s in sync),
                         sum(s.gather_s for s in sync),
                         self._gathered(self.graph[name], samples, block) if in_c else 0.0))
            handed.append(self._handed_over(name, samples, block))
        forward, backward, last, syncs, updates, gathers, features = (list(of) for of in zip(*rows, strict=True))
        total = [f + b for f, b in zip(forward, backward, strict=True)]
        handed.append((0.0, 0.0))
        crosses = [number * block % self.cluster.workers_per_node == 0 for number in range(stages + 1)]
        if max(m / stages, 1) * sum(total) >= limit_s:
            return

        def stage(number: int, first: int, end: int, before: float, forward_before: float, moved: float) -> float:
            """Bound by the stage of groups first … end − 1; `moved` is what the exchanges in front of it take."""
            own, sums = sum(total[first:end]), sum(syncs[first:end])
            arrives = max(handed[first][crosses[number]] if number else 0.0, features[first])
            messages = m * 2 * (arrives + sum(features[first + 1:end]) + handed[end][crosses[number + 1]])
            return max(before + 2 * moved + m * own,
                       forward_before + moved + m * own + sum(gathers[first:end]),
                       forward_before + moved + m * own - sum(backward[first:end]) + last[end - 1] + sums,
                       forward_before + messages + sums,
                       m * own + sum(updates[first:end]) + sigma * (messages + sums))

        def cut(first: int, left: int, before: float, forward_before: float, moved: float, bound: float,
                ) -> Iterator[tuple[float, tuple[int, ...]]]:
            """Where the stages from group `first` on begin."""
            number = stages - left
            moved += handed[first][crosses[number]] if number else 0.0
            for end in [len(total)] if left == 1 else range(first + 1, len(total) - left + 2):
                here = max(bound, stage(number, first, end, before, forward_before, moved))
                if here < limit_s:
                    if left == 1:
                        yield max(here, sum(total) + 2 * moved), (first,)
                        continue
                    inner = cut(end, left - 1, before + sum(total[first:end]),
                                forward_before + sum(forward[first:end]), moved, here)
                    yield from ((found, (first, *starts)) for found, starts in inner)

        for bound, starts in cut(0, stages, 0.0, 0.0, 0.0, 0.0):
            for order in PIPELINES[:1] if m == 1 else PIPELINES:
                yield Proposal(bound, "pipelines", lambda starts=starts, order=order:  # type: ignore[misc]
                               self._pipeline(starts, block, m, split, order))

    def _leaders_s(self, block: int, samples: int, split: str) -> float:
        """Forward and backward of the decided ops alone, for one micro-batch."""
        total = 0.0
        for group in self._groups:
            in_c = split == "c" and self._in_c(group, block)
            total += sum(self._times(group[1][0], (1, block, 1, 1, 1) if in_c else (block, 1, 1, 1, 1), samples, block))
        return total

    def _times(self, op: Op, degrees: Degrees | None, samples: int, block: int) -> tuple[float, float]:
        """Forward and backward of an op; one that follows (`degrees` None) is counted by its share of the block."""
        cut = degrees or ((block, 1, 1, 1, 1) if samples >= block else (1, 1, 1, 1, 1))
        key = op.name, cut, samples
        if key not in self._seconds:
            if degrees is None and "n" not in op.dims:
                self._seconds[key] = 0.0, 0.0
            else:
                part, compute = some_part(op, cut, samples), self.cluster.compute
                gradient = any(producer in self._trained for producer in op.inputs)
                alone = self.cluster.contention_factor(1)
                backward = alone * compute.backward_s(op, part, self.cost_model.precision, gradient)
                self._seconds[key] = (alone * compute.forward_s(op, part, self.cost_model.precision),
                                      backward if op.name in self._trained else 0.0)
        return self._seconds[key]

    def _sync(self, op: Op, block: int) -> Sync:
        """Of an op split in n over a block; where nodes may cut some blocks and not others, nothing is known."""
        per_node = self.cluster.workers_per_node
        if not op.parameters or (per_node % block and block % per_node):
            return Sync(0.0, 0.0, 0.0)
        if (op.name, block) not in self._syncs:
            self._syncs[op.name, block] = self.cost_model.sync(op, Layout(tuple(range(block)), n=block))
        return self._syncs[op.name, block]

    def _handed_over(self, name: str, samples: int, block: int) -> tuple[float, float]:
        """The link's time, at least, of handing a micro-batch over to the stage that begins with op `name`: to a block
        of the same node, and of another."""
        op, per_node = self.graph[name], self.cluster.workers_per_node
        producer = next((p for p in op.inputs if p != INPUT and self._next.get(p) == name), None)
        if producer is None:
            return 0.0, 0.0
        # Every worker of a block has so many rows at least, all different.
        nbytes = samples // block * math.prod(self.graph[producer].shape) * ACTIVATION_BYTES[self.cost_model.precision]
        inside, between = (link.seconds(nbytes * (min(block, per_node) if link.shared else 1)) if link else math.inf
                           for link in (self.cluster.inside, self.cluster.between))
        if per_node % block and block % per_node:  # nodes cut some blocks
            inside = between = min(link.seconds(nbytes) for link in (self.cluster.inside, self.cluster.between) if link)
        return inside, between

    def _gathered(self, op: Op, samples: int, block: int) -> float:
        """The link's time, at least, of bringing all features of a micro-batch to every worker of a block that has a
        share of them at most."""
        cluster, itemsize = self.cluster, ACTIVATION_BYTES[self.cost_model.precision]
        nbytes, per_node = samples * math.prod(op.input_shapes[0]) * itemsize, cluster.workers_per_node
        if per_node % block and block % per_node:  # nodes cut some blocks
            return 0.0
        if block <= per_node or cluster.between is None:
            load = nbytes * (block - 1) / block
            return cluster.inside.seconds(load * (block if cluster.inside.shared else 1))
        load = nbytes * (block - per_node) / block
        return cluster.between.seconds(load * (per_node if cluster.between.shared else 1))

    def _pipeline(self, starts: tuple[int, ...], block: int, m: int, split: str, order: str) -> Plan:
        layouts: dict[str, Layout] = {}
        for number, (name, group) in enumerate(self._groups):
            stage = sum(start <= number for start in starts) - 1
            on = tuple(range(stage * block, (stage + 1) * block))
            in_c = split == "c" and self._in_c((name, group), block)
            layouts[name] = Layout(on, c=block) if in_c else Layout(on, n=block)
        plan = make_plan(self.graph, self.workers, layouts, micro_batches=m, pipeline=order)
        check_batch(self.graph, plan, self.batch_size)
        return plan

    def _passes(self, limit_s: float) -> Iterator[Proposal]:
        workers, samples = self.workers, self.batch_size // self.workers
        if workers < 2 or self.batch_size % workers or samples < workers or self._whole_batch:
            return
        on = tuple(range(workers))
        for at, (name, _) in enumerate(self._groups):
            before, rest = self._groups[:at], self._groups[at:]
            if not at or not all(self._in_c(group, workers) for group in rest):
                continue
            forward = backward = sums = gathers = 0.0
            for leader, group in before:
                for op in group:
                    degrees = (workers, 1, 1, 1, 1) if op.name == leader else None
                    f, b = self._times(op, degrees, self.batch_size, workers)
                    sync = self._sync(op, workers)
                    forward, backward, gathers = forward + f, backward + b, gathers + sync.gather_s
                    sums += sync.sum_s + sync.gather_s
            computing = sum(sum(self._times(op, (1, workers, 1, 1, 1), samples, workers))
                            for _, group in rest for op in group if "c" in op.dims and op.extent("c") >= workers)
            inner, entry, split = 0.0, {"b": 0.0, "c": 0.0}, Layout(on, n=workers)
            for leader, group in rest:
                op = self.graph[leader]
                producer = self.graph[op.inputs[0]]
                if leader == name:
                    for scheme, holders in (("b", on[:1]), ("c", on)):  # in b, one worker has all of a pass
                        entry[scheme] = sum(self.cost_model.exchange(producer, Layout(holders, n=len(holders)), op,
                                                                 Layout(on, c=workers), 0, samples))
                elif split.c == workers:
                    inner += sum(self.cost_model.exchange(producer, split, op, Layout(on, c=workers), 0, samples))
                split = Layout(on, c=workers)
                for op in group[1:]:
                    split = follow(op, split)
            for scheme, moved in entry.items():
                passes = forward + moved + workers * (computing + inner)
                bound = max(passes + backward + gathers, passes + sums, forward + workers * (moved + inner) + sums)
                if bound < limit_s:
                    yield Proposal(bound, "passes", lambda name=name, scheme=scheme:  # type: ignore[misc]
                                   self._passing(name, scheme))

    def _passing(self, name: str, scheme: str) -> Plan:
        on, first = tuple(range(self.workers)), self.graph.ops[0].name
        layouts = {first: Layout(on, n=self.workers), name: Layout(on, c=self.workers)}
        plan = make_plan(self.graph, self.workers, layouts, scheme=scheme, micro_batches=self.workers)
        check_batch(self.graph, plan, self.batch_size)
        return plan


def least_s(graph: Graph, plan: Plan, batch_size: int, cost_model: CostModel) -> float:
    """What the timeline of any plan takes at least: the computing of each worker."""
    samples = batch_size // plan.micro_batches
    merged = plan[graph.ops[0].name] if plan.scheme != "a" else None
    busy: dict[int, float] = {}
    for op in graph:
        layout = plan[op.name]
        if layout == merged and samples % layout.n == 0:  # computed for all passes at once, or in all passes
            seconds = sum(cost_model.compute(op, layout, batch_size))
        else:
            seconds = sum(cost_model.compute(op, layout, samples)) * (1 if layout == merged else plan.micro_batches)
        for worker in {min(layout.on), max(layout.on)}:
            busy[worker] = busy.get(worker, 0.0) + seconds
    return max(busy.values())
