"""What the ops in front of a cut will cost at least: bounds for the search, by dynamic programming over candidates.

Putting op p in front of a label (`labels`) makes each of these sums larger at least by what stands beside it, where q
is the next op, X ≤ x and x' are its exchange with p, and s of q is counted when its C is left for good:

    1   E + α           f + b + u + σ·g             X + max(X, σ·(s + X))
    2   E + γ           f + b + g                   X + max(X, σ·(s + X))
    3   N + γ           f + s + g                   2·X
    4   A               f + u + σ·g                 X
    5   G               f + g                       X

and with all ops in front none is larger than the timeline; behind the first op there come σ·s in 1 and s in 2 (all
gathers follow its sum). A timeline that first waits for computing and then for the network is longer than either way
alone, which weighted means w₁·1 + w₂·2 + w₃·3 see: every mean adds up over ops and exchanges, so that

    rest_w(op, candidate) = min over candidates of the op in front of ( cost + exchange + rest_w there )

bounds what comes in front, `past_w` likewise what came behind, and past + rest the timeline of every plan with that
candidate.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from parallel.graph import Edge
from parallel.search.cost_table import Ground
from parallel.search.labels import Label
from parallel.search.op_bounds import Bounds, Floats, Ints

MEANS = np.array([
    [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0.5, 0.5], [0, 0.75, 0.25], [0, 0.25, 0.75], [0.5, 0, 0.5],
], dtype=np.float64)  # [w, 3]
"""Weights of the sums 1, 2 and 3."""
CROSSING = np.stack([MEANS[:, 0] + MEANS[:, 1], MEANS[:, 2]], axis=1)  # [w, 2]
"""Weights of what an exchange costs in 1 and 2, and in 3."""
FEW_PAIRS = 400
"""Of candidates: bounding all closely takes no longer than bounding some."""
MOST_ROUNDS = 12
"""Of bounding the exchanges that seem best more closely, after which others may seem best."""


@dataclass
class Stage:
    """One run of ops (`ground.Run`) and the candidates of its leader that may still be in the best plan."""

    candidates: Ints
    """[l]"""
    means: Floats
    """Cost of the run by mean [w, l]."""
    ends: Floats
    """Cost of the run in 4 and 5 [2, l]."""
    sums: Floats
    """s of the run's first op [l]."""
    edge: Edge | None
    """From the run before."""
    inner: list[tuple[Edge, Floats, Floats]]
    """Edges within the run: bounds of the exchange in either direction, s of the consumer [l]."""
    forward_s: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    """Of the exchange from the run before [candidates there, l]: bounds, exact where they are known."""
    backward_s: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    moved: Floats = field(default_factory=lambda: np.zeros((2, 0, 0)))
    """What the exchange costs in 1 and 2, and in 3 [2, candidates there, l]."""
    close: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0), dtype=bool))
    """Which of them are as close as bounds can be."""
    known: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))
    """Candidates whose exchanges are bounded at all [l]."""
    past: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    """Of all runs behind [w, l]."""
    rest: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    """Of all runs in front [w, l]."""
    rest_ends: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    """[2, l]"""


class Potentials:
    """Bounds over the runs of a ground. `extra_s` is what a candidate of the first op costs besides [l]."""

    def __init__(self, ground: Ground, bounds: Bounds, extra_s: Floats) -> None:
        self.ground, self.bounds, self.slowdown = ground, bounds, ground.slowdown
        self.stages: list[Stage] = []
        for r, run in enumerate(ground.runs):
            stage = self._stage(r)
            if r == 0:
                first = bounds.costs(run.ops[0])
                behind = np.stack([self.slowdown * first.sum_s, first.sum_s, np.zeros_like(first.sum_s)])
                stage.means += MEANS @ behind + extra_s
                stage.ends += extra_s
            self.stages.append(stage)

    def _stage(self, r: int) -> Stage:
        ground, run, slowdown = self.ground, self.ground.runs[r], self.slowdown
        size = len(ground.space.candidates[run.leader])
        sums, ends, everyone = np.zeros((3, size)), np.zeros((2, size)), np.arange(size)
        inner: list[tuple[Edge, Floats, Floats]] = []
        for name in run.ops:
            cost = self.bounds.costs(name)
            f, b, s, u, g = cost.forward_s, cost.backward_s, cost.sum_s, cost.update_s, cost.gather_s
            sums += [f + b + u + slowdown * g, f + b + g, f + s + g]
            ends += [f + u + slowdown * g, f + g]
            edge = ground.ahead.get(name)
            if edge is not None and edge.consumer in run.ops:
                x, consumer = self.bounds.exchange_s(edge, everyone, everyone), self.bounds.costs(edge.consumer)
                inner.append((edge, x, consumer.sum_s))
                sums += self._moved(x, x, consumer.sum_s)
                ends += x
        last = ground.runs[r - 1].ops[-1] if r else None
        crossing = ground.ahead.get(last) if last is not None else None
        first = self.bounds.costs(run.ops[0]).sum_s
        return Stage(everyone, MEANS @ sums, ends, first, crossing, inner)

    def _moved(self, forward_s: Floats, backward_s: Floats, sum_s: Floats) -> Floats:
        """Cost of an exchange in 1, 2 and 3."""
        both = forward_s + np.maximum(backward_s, self.slowdown * (sum_s + backward_s))
        return np.stack([both, both, forward_s + backward_s])

    def among(self, keep: Sequence[NDArray[np.bool_]]) -> Potentials:
        """The same over some of the candidates, by run; these potentials stay as they are."""
        some = copy.copy(self)
        some.stages = [replace(stage) for stage in self.stages]
        some._keep(keep)
        return some

    def of_plan(self, chosen: Mapping[str, int]) -> float:
        """What a whole plan takes at least, before any candidates are dropped."""
        total = np.zeros(len(MEANS))
        for r, stage in enumerate(self.stages):
            index = np.array([chosen[self.ground.runs[r].leader]])
            total += stage.means[:, index[0]]
            if stage.edge is not None:
                x = self.bounds.exchange_s(stage.edge, np.array([chosen[self.ground.runs[r - 1].leader]]), index)
                total += (MEANS @ self._moved(x, x, stage.sums[index]))[:, 0]
        return float(total.max())

    def narrow(self, limit_s: float) -> None:
        """Drop the candidates that no plan within the limit can have, exchanges not counted."""
        least = [stage.means.min(axis=1) for stage in self.stages]
        total = np.sum(least, axis=0)
        self._keep([(stage.means + (total - own)[:, None]).max(axis=0) < limit_s
                    for stage, own in zip(self.stages, least, strict=True)])

    def prepare(self) -> None:
        """Bound the exchanges within the runs more closely; take those between runs for free until they are asked for.
        """
        rest, rest_ends = np.zeros((len(MEANS), 1)), np.zeros((2, 1))
        for r, stage in enumerate(self.stages):
            for edge, x, sum_s in stage.inner:
                at = x.nonzero()[0]
                closer = self.bounds.closer_s(edge, stage.candidates[at], stage.candidates[at]) if len(at) else None
                if closer is not None:
                    forward_s, backward_s = (np.maximum(new, x[at]) for new in closer)
                    more = self._moved(forward_s, backward_s, sum_s[at]) - self._moved(x[at], x[at], sum_s[at])
                    stage.means[:, at] += MEANS @ more
                    stage.ends[:, at] += forward_s - x[at]
            stage.inner = []
            shape = len(self.stages[r - 1].candidates) if r else 0, len(stage.candidates)
            stage.forward_s, stage.backward_s, stage.moved = np.zeros(shape), np.zeros(shape), np.zeros((2, *shape))
            stage.close, stage.known = np.zeros(shape, dtype=bool), np.zeros(shape[1], dtype=bool)
            stage.rest = np.repeat(rest, shape[1], axis=1)
            stage.rest_ends = np.repeat(rest_ends, shape[1], axis=1)
            rest, rest_ends = (x + y.min(axis=1, keepdims=True)
                               for x, y in ((rest, stage.means), (rest_ends, stage.ends)))

    def connect(self) -> None:
        """Bound the exchanges between all candidates that are left."""
        for before, stage in zip(self.stages, self.stages[1:], strict=False):
            self._bound(before, stage, (~stage.known).nonzero()[0])

    def _bound(self, before: Stage, stage: Stage, columns: Ints) -> None:
        if stage.edge is not None and len(columns):
            x = self.bounds.exchange_s(stage.edge, before.candidates[:, None], stage.candidates[None, columns])
            stage.forward_s[:, columns] = stage.backward_s[:, columns] = x
            stage.moved[:, :, columns] = self._moved(x, x, stage.sums[columns])[1:]
        stage.known[columns] = True

    def settle(self, limit_s: float) -> None:
        """Bound those exchanges more closely that `rest` hangs on, for candidates that may be within the limit."""
        for before, stage in zip(self.stages, self.stages[1:], strict=False):
            columns = ((stage.means + stage.rest + stage.past).max(axis=0) < limit_s).nonzero()[0]
            for _ in range(MOST_ROUNDS):
                if stage.edge is None or not len(columns):
                    break
                rows, stage.rest[:, columns] = self._least(before, stage, columns)
                wide = np.broadcast_to(columns, rows.shape)
                if stage.close.size <= FEW_PAIRS:
                    loose = np.stack((~stage.close).nonzero(), axis=1)
                else:
                    loose = np.unique(np.stack([rows, wide], axis=-1)[~stage.close[rows, wide]], axis=0)
                self._sharpen(before, stage, loose[:, 0], loose[:, 1])
                columns = np.unique(loose[:, 1])

    def _least(self, before: Stage, stage: Stage, columns: Ints) -> tuple[Ints, Floats]:
        """By mean, the best candidate in front of some of the run's, and `rest` with it [w, l]."""
        rows, least = [], []
        for w, weights in enumerate(MEANS):
            cost = self.crossing(stage, weights, columns) + (before.means[w] + before.rest[w])[:, None]
            rows.append(cost.argmin(axis=0))
            least.append(cost[rows[-1], np.arange(len(columns))])
        return np.stack(rows), np.stack(least)

    def _sharpen(self, before: Stage, stage: Stage, rows: Ints, columns: Ints) -> None:
        if stage.edge is None or not len(rows):
            return
        closer = self.bounds.closer_s(stage.edge, before.candidates[rows], stage.candidates[columns])
        stage.close[rows, columns] = True
        if closer is not None:
            stage.forward_s[rows, columns] = np.maximum(stage.forward_s[rows, columns], closer[0])
            stage.backward_s[rows, columns] = np.maximum(stage.backward_s[rows, columns], closer[1])
            forward_s, backward_s = stage.forward_s[rows, columns], stage.backward_s[rows, columns]
            stage.moved[:, rows, columns] = self._moved(forward_s, backward_s, stage.sums[columns])[1:]

    def crossing(self, stage: Stage, weights: Floats, columns: slice | Ints = slice(None)) -> Floats:
        """Cost in a mean of the exchange from the run before [candidates there, l]."""
        one_or_two, three = float(weights[0] + weights[1]), float(weights[2])
        if not three:
            return one_or_two * stage.moved[0][:, columns]
        if not one_or_two:
            return three * stage.moved[1][:, columns]
        return one_or_two * stage.moved[0][:, columns] + three * stage.moved[1][:, columns]

    def solve(self, limit_s: float) -> None:
        """Find all bounds, and drop the candidates that exceed the limit."""
        first = self.stages[0]
        first.rest, first.rest_ends = np.zeros_like(first.means), np.zeros_like(first.ends)
        for before, stage in zip(self.stages, self.stages[1:], strict=False):
            stage.rest = self._least(before, stage, np.arange(len(stage.candidates)))[1]
            stage.rest_ends = np.stack([(stage.forward_s + (before.ends[i] + before.rest_ends[i])[:, None]).min(axis=0)
                                        for i in range(2)])
        past = np.zeros_like(self.stages[-1].means)
        keep: list[np.ndarray] = []
        for r in reversed(range(len(self.stages))):
            stage = self.stages[r]
            stage.past = past
            keep.append((stage.means + stage.rest + past).max(axis=0) < limit_s)
            if r:
                past = np.stack([(self.crossing(stage, weights) + (stage.means[w] + past[w])[None, :]).min(axis=1)
                                 for w, weights in enumerate(MEANS)])
        keep.reverse()
        self._keep(keep)

    @property
    def empty(self) -> bool:
        """Whether no plan within the limit is left."""
        return any(not len(stage.candidates) for stage in self.stages)

    @property
    def least_s(self) -> float:
        """What every plan takes at least."""
        last = self.stages[-1]
        return float((last.means + last.rest).max(axis=0).min())

    def _keep(self, keep: Sequence[NDArray[np.bool_]]) -> None:
        """Drop all other candidates."""
        for r, (stage, mask) in enumerate(zip(self.stages, keep, strict=True)):
            if stage.forward_s.size:
                left = np.ix_(keep[r - 1], mask)
                stage.forward_s, stage.backward_s = stage.forward_s[left], stage.backward_s[left]
                stage.moved = np.stack([x[left] for x in stage.moved])
                stage.close, stage.known = stage.close[left], stage.known[mask]
            stage.candidates, stage.sums = stage.candidates[mask], stage.sums[mask]
            stage.means, stage.ends = stage.means[:, mask], stage.ends[:, mask]
            stage.inner = [(edge, x[mask], sum_s[mask]) for edge, x, sum_s in stage.inner]
            if stage.rest.size:
                stage.rest, stage.rest_ends = stage.rest[:, mask], stage.rest_ends[:, mask]
            if stage.past.size:
                stage.past = stage.past[:, mask]

    def of_label(self, label: Label, r: int, position: int) -> float:
        """What a plan takes at least whose runs from r on are the label's."""
        stage = self.stages[r]
        means = MEANS @ _sums(label) + stage.rest[:, position]
        ends = max(label.a + stage.rest_ends[0, position], label.g + stage.rest_ends[1, position])
        return max(float(means.max()), ends)

    def in_front(self, label: Label, r: int, position: int, limit_s: float, most: int | None = None) -> Floats:
        """The same for every candidate of run r − 1 in front of it [l]; exchanges are bounded closely where that may
        help, and for the best `most` candidates alone."""
        stage, before = self.stages[r], self.stages[r - 1]
        if not stage.known[position]:
            self._bound(before, stage, np.array([position]))
        values = self._in_front(label, stage, before, position)
        rows = ((values < limit_s) & ~stage.close[:, position]).nonzero()[0]
        if len(rows):
            if most is not None:
                rows = rows[values[rows].argsort()[:most]]
            self._sharpen(before, stage, rows, np.full_like(rows, position))
            values = self._in_front(label, stage, before, position)
        return values

    def _in_front(self, label: Label, stage: Stage, before: Stage, position: int) -> Floats:
        costs = before.means + before.rest + (MEANS @ _sums(label))[:, None]
        costs += CROSSING @ stage.moved[:, :, position]
        ends = before.ends + before.rest_ends + np.array([[label.a], [label.g]]) + stage.forward_s[:, position]
        result: Floats = np.maximum(costs.max(axis=0), ends.max(axis=0))
        return result


def _sums(label: Label) -> Floats:
    """The sums 1, 2 and 3 of the module's table."""
    return np.array([label.e + label.alpha, label.e + label.gamma, label.n + label.gamma])
