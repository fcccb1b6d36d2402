"""Passes: schemes b and c of one weird trick (Krizhevsky 2014, section 4).

The first groups (`pipeline_stages`) are split in n over all W workers and computed once a step. The
others, a chain of linear layers and what follows them, are split in c over all workers and computed
in W passes, one after the other. Seconds:

    f, b         forward and backward of the first groups for the whole batch   (`StageCosts.totals`)
    s, g         sums of their gradients, gathering of their parameters           (`StageCosts.sync`)
    t, a, y      of the others for one pass: forward and backward, adding up the gradients, and the
                 exchanges among them                                           (`StageCosts.inside`)
    x            for one pass, the exchange between the two, both ways                     (`_entry`)

Only the x of other passes can be hidden. A step takes at least (`_bound_s`)

    f + x + W·(t + y) + (W − 1)·a + max(b, s) + g       passes one after the other; s beside b
    f + W·(x + y) + s + g                               messages of a worker one after the other
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from parallel.graph import Graph
from parallel.plans import Layout, Plan, check_batch, make_plan
from parallel.search.cost_table import ALMOST
from parallel.search.pipeline_stages import Block, StageCosts
from parallel.search.proposal import Proposal

SCHEMES = ("b", "c")


class Passes:
    """The proposals of passes for one graph and batch."""

    def __init__(self, graph: Graph, batch_size: int, workers: int, costs: StageCosts) -> None:
        self.graph, self.batch_size, self.workers, self._costs = graph, batch_size, workers, costs

    def proposals(self, limit_s: float) -> Iterator[Proposal]:
        """Yield those whose bound is below the limit."""
        workers, groups = self.workers, range(len(self._costs.groups))
        if workers < 2 or self.batch_size % workers or any(op.whole_batch for op in self.graph):
            return
        if self.batch_size // workers < workers:  # the loss is split in n in every pass
            return
        for first in groups[1:]:
            if all(self._costs.splits_in_c(g, workers) and self._costs.may_begin[g] for g in groups[first:]):
                for scheme in SCHEMES:
                    bound = self._bound_s(first, scheme)
                    if bound < limit_s:
                        yield Proposal(bound, "passes", partial(self._make, first, scheme))

    def _bound_s(self, first: int, scheme: str) -> float:
        """Return a lower bound of the timeline when groups from `first` on are computed in passes."""
        costs, passes, count = self._costs, self.workers, len(self._costs.groups)
        in_n, in_c = Block(0, passes, "n"), Block(0, passes, "c")
        forward, backward, _ = costs.totals(1, in_n).of(range(first))
        pass_forward, pass_backward, adding = costs.totals(passes, in_c).of(range(first, count))
        computing = pass_forward + pass_backward
        among = sum(sum(costs.inside(g, passes, in_c, g > first)) for g in range(first, count))
        syncs = [costs.sync(g, in_n) for g in range(first)]
        sums, gathers = sum(sync.sum_s for sync in syncs), sum(sync.gather_s for sync in syncs)
        entry = self._entry(first, scheme)
        return ALMOST * gathers + ALMOST * max(
            forward + entry + passes * (computing + among) + (passes - 1) * adding + max(backward, sums),
            forward + passes * (entry + among) + sums,
        )

    def _entry(self, first: int, scheme: str) -> float:
        """Return x: in scheme b one worker holds a pass's samples, in scheme c all of them.

        In scheme b, if nodes or workers differ, that of the worker with the fastest exchange.
        """
        op, everyone, model = self._costs.leaders[first], tuple(range(self.workers)), self._costs.cost_model
        samples, needed = self.batch_size // self.workers, Layout(everyone, c=self.workers)
        some = everyone[:1] if model.cluster.even else everyone
        held = [Layout((worker,)) for worker in some] if scheme == "b" else [Layout(everyone, n=self.workers)]
        producer = self.graph[op.inputs[0]]
        return min(sum(model.exchange(producer, layout, op, needed, 0, samples)) for layout in held)

    def _make(self, first: int, scheme: str) -> Plan:
        on = tuple(range(self.workers))
        layouts = {
            self.graph.ops[0].name: Layout(on, n=self.workers),
            self._costs.leaders[first].name: Layout(on, c=self.workers),
        }
        plan = make_plan(self.graph, self.workers, layouts, scheme=scheme, micro_batches=self.workers)
        check_batch(self.graph, plan, self.batch_size)
        return plan
