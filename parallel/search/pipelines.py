"""Pipelines: stages of consecutive ops on blocks of workers side by side.

    stages         S ≥ 2 runs of groups, each a decided op with those that follow it
                   (`pipeline_stages`); a stage begins where a single tensor enters it
    blocks         stage j is on the s_j workers after those of stage j − 1, Σ s_j ≤ W, so that some
                   workers may be idle. Sizes (`stage_sizes`): 1 … W − 1 up to 8 workers; beyond that
                   divisors of W, powers of two, and what each of these leaves of W
    split          in a stage all ops are split in n, or its linear layers in c and the others in n;
                   beyond 8 workers in c on divisors and powers of two alone. n need not divide a
                   micro-batch, but leaves no part empty (`check_batch`)
    micro-batches  m = 1, 2, 4 … that divide the batch; 1 alone where an op needs the statistics of
                   the whole batch. With m = 1 these are blocks side by side
    order          fill-drain and 1F1B; with one micro-batch they are the same

Branch and bound, depth first from the first stage on (`_extend`). Dropped is what cannot be faster
than the limit:

    w(stage)    = m·(f + b) + (m − 1)·a                       what a stage computes     (`_work_s`)
    least_t[g]  = Σ over the groups before g of min over blocks of f + b
    fewest[g]   = min over stages from g on, with least_t[g] + w(stage) < limit,
                  of size + fewest[end of the stage]                                    (`_fewest`)

fewest[g] is the number of workers that the groups from g on need at least. The stages chosen so far
have to keep below the limit by `pipeline_bounds.bound_s`: first with lower bounds of their
exchanges, which are known at once, then with the cost model's.

Why fewer sizes beyond 8 workers: at 1,024, the exchanges and parts of a linear layer split in c
take 5 to 15 ms a block. With divisors and powers of two alone, all pipelines for AlexNet on
h100_infiniband take 0.9 s instead of 8.7 s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from parallel.cluster import Cluster
from parallel.config import PIPELINES
from parallel.graph import Graph
from parallel.plans import Layout, Plan, check_batch, make_plan
from parallel.search.passes import Passes
from parallel.search.pipeline_bounds import StageCost, bound_s
from parallel.search.pipeline_stages import Block, StageCosts
from parallel.search.proposal import Proposal
from parallel.search.space import SMALL
from parallel.simulator.cost_model import CostModel


def stage_sizes(workers: int) -> tuple[tuple[int, ...], frozenset[int]]:
    """Return the sizes of blocks, rising, and those on which linear layers may be split in c."""
    everyone = range(1, workers)
    if workers <= SMALL:
        return tuple(everyone), frozenset(everyone)
    regular = frozenset(size for size in everyone if workers % size == 0 or size & (size - 1) == 0)
    return tuple(sorted(regular.union(workers - size for size in regular))), regular


def space_in_words(workers: int) -> str:
    """Return what `Pipelines.proposals` covers, for a certificate."""
    sizes, _ = stage_sizes(workers)
    of = "any sizes" if workers <= SMALL else f"{', '.join(map(str, sizes))} workers"
    return f"pipelines of stages of {of}, and passes"


@dataclass(frozen=True)
class _Chosen:
    """The first stages of a pipeline."""

    blocks: tuple[Block, ...] = ()
    ends: tuple[int, ...] = ()
    """The group after the last one of each stage."""
    costs: tuple[StageCost, ...] = ()
    start: float = 0.0
    """When the forward pass of one micro-batch leaves the last of them."""
    drain: float = 0.0
    """From its gradient's return to the end of its backward pass."""
    used: int = 0
    """Workers."""

    def and_then(self, block: Block, end: int, cost: StageCost, start: float) -> _Chosen:
        """Return these stages with another one, which its input reaches from `start` on."""
        return _Chosen(
            (*self.blocks, block),
            (*self.ends, end),
            (*self.costs, cost),
            start + cost.enter_forward + cost.forward + cost.inside_forward,
            self.drain + cost.enter_backward + cost.backward + cost.inside_backward,
            self.used + block.size,
        )


class Pipelines:
    """Pipelines and passes for one graph, batch and cluster."""

    def __init__(
        self, graph: Graph, batch_size: int, workers: int, cluster: Cluster, cost_model: CostModel
    ) -> None:
        self.graph, self.batch_size, self.workers, self.cluster = graph, batch_size, workers, cluster
        self._stages = StageCosts(graph, batch_size, cost_model)
        self._passes = Passes(graph, batch_size, workers, self._stages)
        self._sizes, self._sizes_in_c = stage_sizes(workers)
        self._begins = [g for g, begins in enumerate(self._stages.may_begin) if begins]
        self._count = len(self._stages.groups)

    def proposals(self, limit_s: float) -> Iterator[Proposal]:
        """Yield those whose bound is below the limit."""
        micro_batches = 1
        whole_batch = any(op.whole_batch for op in self.graph)
        while self.batch_size % micro_batches == 0 and (micro_batches == 1 or not whole_batch):
            yield from self._pipelines(micro_batches, limit_s)
            micro_batches *= 2
        yield from self._passes.proposals(limit_s)

    def _pipelines(self, m: int, limit_s: float) -> Iterator[Proposal]:
        """Yield those of m micro-batches."""
        fewest = self._fewest(m, limit_s)
        if fewest[0] > self.workers:
            return
        for chosen in self._extend(_Chosen(), m, fewest, limit_s):
            for order in PIPELINES[:1] if m == 1 else PIPELINES:
                bound = self._bound_s(chosen, m, order)
                if bound < limit_s:
                    yield Proposal(bound, "pipelines", partial(self._make, chosen, m, order))

    def _splits(self, m: int, groups: range) -> Iterator[tuple[int, str]]:
        """Yield the sizes and splits of a block that may compute these groups."""
        for size in self._sizes:
            if size > self.batch_size // m:
                return
            yield size, "n"
            if size in self._sizes_in_c and any(self._stages.splits_in_c(g, size) for g in groups):
                yield size, "c"

    def _blocks(self, size: int, split: str) -> list[Block]:
        """Return the blocks of a size that may take different times for the same work."""
        firsts = range(self.workers - size + 1) if self.cluster.speeds else (0,)
        return [Block(first, size, split) for first in firsts]

    def _work_s(self, m: int, block: Block, groups: range) -> float:
        """Return w: the seconds that a stage computes."""
        forward, backward, accumulate = self._stages.totals(m, block).of(groups)
        return m * (forward + backward) + (m - 1) * accumulate

    def _fewest(self, m: int, limit_s: float) -> list[float]:
        """Return how many workers the groups from each on need at least; infinity if no number suffices."""
        least_t = [0.0]
        for g in range(self._count):
            totals = [
                self._stages.totals(m, block)
                for size, split in self._splits(m, range(g, g + 1))
                for block in self._blocks(size, split)
            ]
            seconds = [total.of(range(g, g + 1)) for total in totals]
            least_t.append(
                least_t[g] + min((forward + backward for forward, backward, _ in seconds), default=math.inf)
            )
        fewest = [math.inf] * self._count + [0.0]
        for first in reversed([0, *self._begins]):
            for end in self._ends(first):
                groups = range(first, end)
                size = next(
                    (
                        size
                        for size, split in self._splits(m, groups)
                        if any(
                            least_t[first] + self._work_s(m, block, groups) < limit_s
                            for block in self._blocks(size, split)
                        )
                    ),
                    math.inf,
                )
                fewest[first] = min(fewest[first], size + fewest[end])
        return fewest

    def _ends(self, first: int) -> list[int]:
        """Return where a stage that begins at a group may end; the first stage leaves something to others."""
        last = [self._count] if first else []
        return [g for g in self._begins if g > first] + last

    def _extend(self, chosen: _Chosen, m: int, fewest: list[float], limit_s: float) -> Iterator[_Chosen]:
        """Yield the pipelines that begin with these stages, as far as the bounds let them."""
        first, before = (chosen.ends[-1], chosen.blocks[-1]) if chosen.ends else (0, None)
        if first == self._count:
            yield chosen
            return
        for end in self._ends(first):
            groups = range(first, end)
            for size, split in self._splits(m, groups):
                if chosen.used + size + fewest[end] > self.workers:
                    break
                block = Block(chosen.used, size, split)
                start = chosen.start if chosen.ends else self._loading_s(block, m)
                work = self._work_s(m, block, groups)
                if start + work + chosen.drain >= limit_s:
                    continue
                for exact in (False, True):
                    cost = self._stages.stage(groups, m, block, before, exact)
                    longer = chosen.and_then(block, end, cost, start)
                    if self._bound_s(longer, m, None) >= limit_s:
                        break
                else:
                    yield from self._extend(longer, m, fewest, limit_s)

    def _bound_s(self, chosen: _Chosen, m: int, order: str | None) -> float:
        """Return a lower bound of these stages and the loading of their images."""
        timeline_s = bound_s(chosen.costs, m, order, self.cluster.overlap_slowdown)
        return timeline_s + self._loading_s(chosen.blocks[0], m)

    def _loading_s(self, first: Block, m: int) -> float:
        """Return what the step waits for images that the first stage loads."""
        if self.cluster.data_overlaps or not self.cluster.data_s_per_image:
            return 0.0
        layout = self._stages.layouts(0, first)[self.graph.ops[0].name]
        rows = layout.samples_by_index(self.batch_size // m)
        return self.cluster.data_s([m * rows[layout.index(worker)["n"]] for worker in layout.on])

    def _make(self, chosen: _Chosen, m: int, order: str) -> Plan:
        layouts: dict[str, Layout] = {}
        for first, end, block in zip((0, *chosen.ends), chosen.ends, chosen.blocks, strict=False):
            for g in range(first, end):
                leader = self._stages.leaders[g].name
                layouts[leader] = self._stages.layouts(g, block)[leader]
        plan = make_plan(self.graph, self.workers, layouts, micro_batches=m, pipeline=order)
        check_batch(self.graph, plan, self.batch_size)
        return plan
