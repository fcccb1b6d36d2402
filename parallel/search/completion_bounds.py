"""Completion bounds: the least that the ops in front of a cut add, by dynamic programming.

This is the heuristic of A*. Putting op p in front of a label (`labels`) increases each of these sums
by at least the amount beside it. Here q is the op behind p, x and x' are the exchange between them,
s of q is counted when its C is no longer needed, and z' are returns of other edges within the run:

    1   C + α           f + b + u + σ·min(g, u)     x + max(x', σ·(s + x'))
    2   C + γ           f + b + g                   x + max(x', σ·(s + x'))
    3   N + γ           f + s + g                   x + x' + z'
    4   A               f + u + σ·min(g, u)         x
    5   G               f + g                       x

With all ops in front, none of the sums exceeds the timeline: each is the length of one path through
its maxima. The first op adds σ·s to sum 1 and s to sum 2, because all gathers follow its sum. A
timeline that waits first for computing and then for the network is longer than either path; weighted
means w₁·1 + w₂·2 + w₃·3 account for that. Every mean is a sum over ops and exchanges, so that

    rest_w(run, candidate) = min over candidates of the run in front of ( cost + exchange + rest_w there )

is admissible: it never exceeds what the best plan in front adds (`CompletionBounds.rest`). Exchanges
of branches beside other work are left out, which makes no path longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from parallel.search.cost_table import CostTable, Dependency
from parallel.simulator.partition import Bools, Floats, Ints

MEANS = np.array(
    [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0.5, 0.5], [0, 0.75, 0.25], [0, 0.25, 0.75], [0.5, 0, 0.5]],
    dtype=np.float64,
)  # [w, 3]
"""Weights of the sums 1, 2 and 3."""
BRANCHES = np.concatenate(
    [
        np.concatenate([MEANS, np.zeros((len(MEANS), 2))], axis=1),
        np.array([[0, 0, 0, 1, 0], [0, 0, 0, 0, 1.0]]),
    ]
)
"""Weights of the sums 1 to 5 in each bounded quantity: the means, and sums 4 and 5 alone [w, 5]."""
CROSSINGS = np.stack([BRANCHES[:, :2].sum(axis=1), BRANCHES[:, 2], BRANCHES[:, 3:].sum(axis=1)], axis=1)
"""Weights of the three costs of an exchange [w, 3]."""


@dataclass(frozen=True, eq=False)
class Stage:
    """Bounds of one run."""

    own: Floats
    """Cost of the run by mean [w, l]."""
    crossing: Floats | None
    """Cost of the exchange with the run before, in sums 1 and 2, in 3, and in 4 and 5
    [3, candidates there, l]; None: the run does not read it."""
    edge: Dependency | None
    """Edge from the run before."""
    rest: Floats
    """Bound of all runs in front [w, l]."""


class CompletionBounds:
    """Bounds over the runs of a table.

    `extra_s` is what each candidate of the first op adds to the total beside the timeline [l].
    """

    def __init__(self, table: CostTable, extra_s: Floats) -> None:
        self._table, self._leaders = table, [run.leader for run in table.runs]
        self.stages: list[Stage] = []
        for r in range(len(table.runs)):
            own = BRANCHES @ run_sums(table, r)
            first = table.runs[r].ops[0]
            edge = next((edge for edge in table.into[first] if edge.producer == first - 1), None)
            crossing = None if edge is None else self._crossing(edge)
            if r == 0:
                own += extra_s
                rest = np.zeros_like(own)
            else:
                before = self.stages[-1]
                rest = self._rest(before.own + before.rest, crossing, own.shape[1])
            self.stages.append(Stage(own, crossing, edge, rest))

    @property
    def least_s(self) -> float:
        """A lower bound of the total of every plan."""
        last = self.stages[-1]
        return float((last.own + last.rest).max(axis=0).min())

    def in_front(self, r: int, chosen: Mapping[str, Ints]) -> Floats:
        """Return the least that the runs in front of run r add to each mean [w, l].

        `chosen` has the candidates of some of their leaders [l]; the others may have any.
        """
        total = np.zeros((len(BRANCHES), 1))
        while r > 0:
            r -= 1
            stage, at = self.stages[r], chosen.get(self._leaders[r])
            if at is None:
                return total + (stage.own + stage.rest).min(axis=1, keepdims=True)
            total = total + stage.own[:, at]
            before = chosen.get(self._leaders[r - 1]) if r else None
            if before is None:
                return total + stage.rest[:, at]
            if stage.crossing is not None:
                total = total + CROSSINGS @ stage.crossing[:, before, at]
        return total

    def _crossing(self, edge: Dependency) -> Floats:
        """Return the costs of the exchange with the run before."""
        costs, table = self._table.edges[edge], self._table
        return _moved(costs.forward_s, costs.backward_s, table.ops[edge.consumer].sum_s, table.slowdown)[1:4]

    @staticmethod
    def _rest(before: Floats, crossing: Floats | None, candidates: int) -> Floats:
        if crossing is None:
            return np.repeat(before.min(axis=1, keepdims=True), candidates, axis=1)
        rest = np.zeros((len(BRANCHES), candidates))
        for w in range(len(rest)):
            rest[w] = (_weighted(crossing, w) + before[w][:, None]).min(axis=0)
        return rest

    def within(self, limit_s: float) -> tuple[dict[str, Bools], dict[Dependency, Bools]]:
        """Return which candidates a plan below the limit may have, by leader [l].

        Also returns which pairs of candidates, by edge between runs [candidates there, l].
        """
        pairs: dict[Dependency, Bools] = {}
        keep = {
            leader: np.ones(self.stages[r].own.shape[1], dtype=bool) for r, leader in enumerate(self._leaders)
        }
        behind = np.zeros((len(BRANCHES), 1))
        for r in reversed(range(len(self.stages))):
            stage = self.stages[r]
            keep[self._leaders[r]] &= (stage.own + stage.rest + behind).max(axis=0) < limit_s
            past = stage.own + behind
            if stage.crossing is None:
                behind = past.min(axis=1, keepdims=True)
                continue
            front = self.stages[r - 1].own + self.stages[r - 1].rest
            least, may = np.zeros_like(front), np.ones(stage.crossing.shape[1:], dtype=bool)
            for w in range(len(past)):
                reached = _weighted(stage.crossing, w) + past[w]
                least[w] = reached.min(axis=1)
                may &= reached + front[w][:, None] < limit_s
            behind = least
            if stage.edge is not None:
                pairs[stage.edge] = may
        return keep, pairs


def _weighted(crossing: Floats, w: int) -> Floats:
    """Return the cost of an exchange in one mean."""
    total = np.zeros(crossing.shape[1:])
    for weight, cost in zip(CROSSINGS[w], crossing, strict=True):
        if weight:
            total += weight * cost
    return total


def run_sums(table: CostTable, r: int) -> Floats:
    """Return what a run adds to the five sums, with its inner exchanges if they have bounds [5, l]."""
    slowdown, ops = table.slowdown, table.runs[r].ops
    total = np.zeros((5, len(table.kept[table.runs[r].leader])))
    for op in ops:
        costs = table.ops[op]
        f, b, s, u, g = costs.forward_s, costs.backward_s, costs.sum_s, costs.update_s, costs.gather_s
        taken = slowdown * costs.beside_s
        total += [f + b + u + taken, f + b + g, f + s + g, f + u + taken, f + g]
        for edge in table.into[op]:
            if edge.producer in ops and edge in table.edges:
                x, back = table.edges[edge].forward_s, table.edges[edge].backward_s
                zero = np.zeros_like(x)
                total += (
                    _moved(x, back, s, slowdown)
                    if edge.producer == op - 1
                    else [zero, zero, back, zero, zero]
                )
    if r == 0:
        s = table.ops[0].sum_s
        total[:2] += [slowdown * s, s]
    return total


def _moved(forward_s: Floats, backward_s: Floats, sum_s: Floats, slowdown: float) -> Floats:
    """Return the cost of an exchange with the next op in each sum [5, …]."""
    both = forward_s + np.maximum(backward_s, slowdown * (sum_s + backward_s))
    return np.stack([both, both, forward_s + backward_s, forward_s, forward_s])


def without_exchanges(table: CostTable, extra_s: Floats, limit_s: float) -> dict[str, Bools]:
    """Return which candidates a plan below the limit may have if exchanges took no time."""
    by_leader: dict[str, Floats] = {}
    for r, run in enumerate(table.runs):
        own = BRANCHES @ run_sums(table, r) + (extra_s if r == 0 else 0.0)
        by_leader[run.leader] = by_leader.get(run.leader, 0.0) + own
    least = {leader: own.min(axis=1) for leader, own in by_leader.items()}
    total = np.sum(list(least.values()), axis=0)
    return {
        leader: (own + (total - least[leader])[:, None]).max(axis=0) < limit_s
        for leader, own in by_leader.items()
    }
