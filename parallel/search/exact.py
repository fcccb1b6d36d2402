"""The best plan of a space with a proof: label setting, from the loss to the images.

A label (`labels`) stands for a plan of the ops behind a cut. Ops are eliminated in the reverse order
of the graph (Elango 2021, PaSE, section 4), one run at a time: a run is a sequence of ops with the
same leader. Before a run is put in front of the labels (`_Pass._prepend`), the candidates of its
leader and of all ops that it reads are chosen (`_Pass._choose`). They remain part of the label as
long as ops in front depend on them: in a chain one layout, in a residual block two. A label is
dropped if

    its sums plus its completion bound are not below the best plan known     branch and bound
    another label with the same layouts dominates it                         `labels.nondominated`
    its memory exceeds the limit

A pass that keeps at most `width` labels at each cut, those with the smallest bounds, is a beam
search. If it drops no label because of the width, it was complete, and the best plan is the
optimum. Passes of growing width find better plans, which leave later passes fewer labels, until one
of them is complete. If time ends before, the smallest bound of a dropped label says how far from
the optimum the best plan can be.

Before the passes, candidates and pairs of candidates that no better plan can have are removed
(`_Search._narrow`). Exchanges are first bounded by those of one worker, then by those of the workers
of a few nodes (NODES), each round for the pairs that are left. Exact costs are computed in a pass,
for the pairs that labels have.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from parallel.graph.box import degree
from parallel.search.completion_bounds import BRANCHES, CompletionBounds, without_exchanges
from parallel.search.cost_table import CostTable, Dependency, Run, plan_memory
from parallel.search.labels import Labels, nondominated
from parallel.search.objective import Objective
from parallel.search.result import Chosen, Limits, Result
from parallel.simulator.partition import Bools, Floats, Ints

TIE = 1e-12
"""Relative difference below which two plans count as equally good."""
WIDTHS = (30, 300, 3000, 30_000, 300_000)
"""Labels that a pass keeps at each cut; the last pass keeps all."""
NODES = (3, 9)
"""Numbers of nodes whose exchanges bound those of all, one round after the other."""
CHUNK = 1 << 19
"""Labels times candidates that are bounded in one array operation."""


def exact(
    table: CostTable, objective: Objective, start: Sequence[Chosen], limits: Limits | None = None
) -> Result:
    """Return the best plan of the table's space.

    `start` are known plans: the better they are, the more labels are pruned.
    """
    return _Search(table, objective, limits or Limits()).run(start)


class _Stopped(Exception):
    """The search must end early; the text says why."""


class _Optimal(Exception):
    """No plan can be better than the best one known."""


class _Search:
    def __init__(self, table: CostTable, objective: Objective, limits: Limits) -> None:
        self.table, self.objective, self.limits = table, objective, limits
        self.best: Chosen | None = None
        self.score = limits.known
        self.floor_s = 0.0
        """Lower bound of the totals of plans that are better than the best one known."""
        self.labels = 0
        self.told = time.monotonic()
        self.passes = 0

    def run(self, start: Sequence[Chosen]) -> Result:
        stopped = None
        try:
            for plan in start:
                self.offer(plan)
            self._search()
        except _Optimal:
            stopped = None
        except _Stopped as reason:
            stopped = str(reason)
        except KeyboardInterrupt:
            stopped = "interrupted"
        bound = self.score if stopped is None else min(self.score, self.objective.least(self.floor_s))
        return Result(self.best, self.score, bound, self.labels, stopped)

    def _search(self) -> None:
        table = self.table
        plain = table.among(_plain(table))
        plain.bound_edges(_one(table))
        _Pass(self, plain, WIDTHS[0], partial=True).run()
        table = self._among(table, without_exchanges(table, self.objective.extra_s, self.limit_s))
        table.bound_edges(_one(table))
        for nodes in NODES:
            table, pairs = self._narrow(table)
            for edge, may in pairs.items():
                table.tighten_edge(
                    edge, np.stack((may & ~table.edges[edge].exact).nonzero()), _nodes(table, nodes)
                )
        for width in (*WIDTHS, None):
            table, _ = self._narrow(table)
            found = _Pass(self, table, width)
            found.run()
            self.floor_s = max(self.floor_s, min(found.dropped_s, self.limit_s))
            if found.dropped_s >= self.limit_s:
                return

    def _narrow(self, table: CostTable) -> tuple[CostTable, dict[Dependency, Bools]]:
        """Return the table without candidates that no better plan has.

        Also returns which pairs of candidates a better plan may have, by edge between runs. Raises
        `_Optimal` if no candidate is left.
        """
        bounds = CompletionBounds(table, self.extra_s(table))
        self.look(bounds.least_s)
        keep, pairs = bounds.within(self.limit_s)
        leaders = table.leaders
        return self._among(table, keep), {
            edge: may[np.ix_(keep[leaders[edge.producer]], keep[leaders[edge.consumer]])]
            for edge, may in pairs.items()
        }

    @staticmethod
    def _among(table: CostTable, keep: Mapping[str, Bools]) -> CostTable:
        if not all(mask.any() for mask in keep.values()):
            raise _Optimal
        return table.among(keep)

    @property
    def limit_s(self) -> float:
        """A plan is better than the best one known only if its total is below this."""
        return self.objective.limit_s(self.score) * (1 - TIE)

    def extra_s(self, table: CostTable) -> Floats:
        """Return what each candidate of the first op adds to the total beside the timeline [l]."""
        return self.objective.extra_s[table.kept[table.runs[0].leader]]

    def offer(self, plan: Chosen) -> None:
        """Keep a plan if it fits the memory and is better than the best one known."""
        limit = self.limits.memory_bytes
        if limit is None or plan_memory(self.table.space, self.table.cost_model, plan) <= limit:
            score = self.objective.score(self.objective.simulate(plan), plan)
            if score < self.score:
                self.score, self.best = score, dict(plan)

    def look(self, floor_s: float) -> None:
        """Report progress, and raise `_Stopped` if the search must end.

        The first pass always finishes, so that there is a plan.
        """
        self.floor_s = max(self.floor_s, min(floor_s, self.limit_s))
        if self.passes and (reason := self.limits.stop()) is not None:
            raise _Stopped(reason)
        if time.monotonic() - self.told > 0.5:
            self.told = time.monotonic()
            self.limits.progress(self.score, min(self.score, self.objective.least(self.floor_s)), self.labels)


@dataclass
class _Pass:
    """One pass over the candidates of a table, from the loss to the images."""

    search: _Search
    table: CostTable
    width: int | None
    partial: bool = False
    """Whether the table lacks candidates of other passes, so that its bounds do not hold for all plans."""
    labels: Labels = field(default_factory=Labels.empty)
    chosen: dict[str, Ints] = field(default_factory=dict)
    """Candidates of the leaders that ops in front depend on, as positions in the table [l]."""
    trail: list[tuple[Ints, str | None, Ints]] = field(default_factory=list)
    """By step, the previous label of each label, and the leader and candidate that were chosen [l]."""
    dropped_s: float = math.inf
    """The smallest bound of a label that was dropped because of the width."""

    def __post_init__(self) -> None:
        self.extra_s = self.search.extra_s(self.table)
        self.bounds = CompletionBounds(self.table, self.extra_s)
        self.memory_limit = self.search.limits.memory_bytes
        if self.memory_limit is not None:
            everything = {name: np.arange(len(kept)) for name, kept in self.table.kept.items()}
            self.memory = [
                np.sum([self.table.memory(op, everything[run.leader]) for op in run.ops], axis=0)
                for run in self.table.runs
            ]

    def run(self) -> None:
        """Offer the best plans found to the search."""
        self._look(self.bounds.least_s)
        if all(self._advance(r) for r in reversed(range(len(self.table.runs)))):
            self._complete()
        self.search.passes += 1

    def _advance(self, r: int) -> bool:
        """Put run r in front of the labels; return whether any are left."""
        run = self.table.runs[r]
        for leader in self._needed(run):
            self._choose(leader, r + 1)
            if not len(self.labels):
                return False
        self._prepend(run)
        front = {run.leader for run in self.table.runs[:r]} if r else {run.leader}
        self.chosen = {name: at for name, at in self.chosen.items() if name in front}
        self._prune(r)
        return len(self.labels) > 0

    def _look(self, least_s: float) -> None:
        """Call `_Search.look` with a lower bound of the labels that are left."""
        self.search.look(0.0 if self.partial else min(self.dropped_s, least_s))

    def _needed(self, run: Run) -> list[str]:
        """Return the leaders whose candidates must be chosen before a run is put in front."""
        leaders = self.table.leaders
        needed = [
            run.leader,
            *(leaders[edge.producer] for op in reversed(run.ops) for edge in self.table.into[op]),
        ]
        return [name for name in dict.fromkeys(needed) if name not in self.chosen]

    def _choose(self, leader: str, r: int) -> None:
        """Extend every label by every candidate of a leader; r is the labels' first run."""
        count, limit_s = len(self.table.kept[leader]), self.search.limit_s
        sums = BRANCHES @ self.labels.sums
        rows, picks, bounds = [], [], []
        for first in range(0, len(self.labels), max(1, CHUNK // count)):
            some = np.arange(first, min(len(self.labels), first + max(1, CHUNK // count)))
            row, pick = np.repeat(some, count), np.tile(np.arange(count), len(some))
            chosen = {**{name: at[row] for name, at in self.chosen.items()}, leader: pick}
            bound = (sums[:, row] + self.bounds.in_front(r, chosen)).max(axis=0)
            below = np.flatnonzero((bound < limit_s) & self._fits(self.labels.memory[row], r, chosen))
            rows.append(row[below])
            picks.append(pick[below])
            bounds.append(bound[below])
        row, pick, bound = (np.concatenate(parts) for parts in (rows, picks, bounds))
        kept = self._narrowest(bound)
        self._take(row[kept], leader, pick[kept])
        self.search.labels += len(kept)
        self._look(float(bound.min(initial=math.inf)))

    def _narrowest(self, bound: Floats) -> Ints:
        """Return the labels with the smallest bounds, as many as the width allows."""
        if self.width is None or len(bound) <= self.width:
            return np.arange(len(bound))
        order = np.argsort(bound, kind="stable")
        self.dropped_s = min(self.dropped_s, float(bound[order[self.width]]))
        return order[: self.width]

    def _prepend(self, run: Run) -> None:
        table, leaders = self.table, self.table.leaders
        for op in reversed(run.ops):
            at = self.chosen[run.leader]
            into: dict[Dependency, tuple[Floats, Floats]] = {
                edge: table.exact_edge(edge, self.chosen[leaders[edge.producer]], at)
                for edge in table.into[op]
            }
            self.labels.prepend(op, table.exact_op(op, at), table.slowdown, into)
            if self.memory_limit is not None:
                self.labels.memory = self.labels.memory + table.memory(op, at)

    def _prune(self, r: int) -> None:
        """Drop labels that exceed a limit or are dominated; r is their first run."""
        bound = (BRANCHES @ self.labels.sums + self.bounds.in_front(r, self.chosen)).max(axis=0)
        fits = self._fits(self.labels.memory, r, self.chosen)
        self._take(np.flatnonzero((bound < self.search.limit_s) & fits))
        keys = np.stack([*self.chosen.values(), np.zeros(len(self.labels), dtype=np.int64)], axis=1)
        groups = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
        self._take(nondominated(self.labels.criteria(), groups))

    def _fits(self, memory: Ints, r: int, chosen: Mapping[str, Ints]) -> Bools:
        """Return which labels may fit the memory, with the least that the runs before run r need [l]."""
        if self.memory_limit is None:
            return np.ones(len(memory), dtype=bool)
        for run, own in zip(self.table.runs[:r], self.memory, strict=False):
            memory = memory + (own[chosen[run.leader]] if run.leader in chosen else own.min())
        return memory <= self.memory_limit

    def _take(self, rows: Ints, leader: str | None = None, picks: Ints | None = None) -> None:
        self.labels = self.labels.take(rows)
        self.chosen = {name: at[rows] for name, at in self.chosen.items()}
        if leader is not None and picks is not None:
            self.chosen[leader] = picks
        self.trail.append((rows, leader, rows if picks is None else picks))

    def _complete(self) -> None:
        """Offer the best of the complete labels."""
        search = self.search
        timeline_s = self.labels.timeline_s
        total_s = timeline_s + self.extra_s[self.chosen[self.table.runs[0].leader]]
        best, best_plan = search.score, None
        for label in np.argsort(total_s, kind="stable").tolist():
            if total_s[label] >= search.objective.limit_s(best) * (1 - TIE):
                break
            plan = self._plan(label)
            score = search.objective.score(float(timeline_s[label]), plan)
            if score < best:
                best, best_plan = score, plan
        if best_plan is not None:
            search.offer(best_plan)

    def _plan(self, label: int) -> dict[str, int]:
        """Return the candidates of a label's plan."""
        plan: dict[str, int] = {}
        for rows, leader, picks in reversed(self.trail):
            if leader is not None:
                plan[leader] = int(self.table.kept[leader][picks[label]])
            label = int(rows[label])
        return {name: plan[name] for name in self.table.space.decided}


def _one(table: CostTable) -> Ints:
    """Return the worker a third into all of them: in most layouts it has neighbours on all sides."""
    return np.array([[table.space.workers // 3]])


def _nodes(table: CostTable, most: int) -> Ints:
    """Return the workers of `most` nodes at most, spread over all nodes and including the last."""
    count = len(table.everyone)
    return table.everyone[sorted({(2 * i + 1) * count // (2 * most) for i in range(most - 1)} | {count - 1})]


def _plain(table: CostTable) -> dict[str, Bools]:
    """Return the candidates that use all workers and do not split feature maps.

    A good plan among them prunes many of the other candidates.
    """
    result, everyone = {}, max(table.space.sizes)
    for name, found in table.space.candidates.items():
        degrees = np.array([list(map(degree, cuts)) for cuts in found])
        plain = (degrees[:, 3:] == 1).all(axis=1) & (degrees.prod(axis=1) == everyone)
        result[name] = plain if plain.any() else np.ones_like(plain)
    return result
