"""The best plan of a space, with a proof: best-first dynamic programming over labels.

A label (`labels`) stands for the ops behind a cut; `potentials` bounds what any ops in front of it will add. Always the
label with the smallest bound is extended, by one run of ops in front, first by the candidates whose bounds are
smallest; an exact price is worked out when its turn comes, and never for what the bounds rule out. A label is dropped

    when its bound is not below the best plan known             it cannot be part of a better one
    when another one at the same cut, with the same layouts wherever ops in front still touch what is behind,
    dominates it                                                it can be replaced
    when its memory exceeds the limit

When none is left, the best plan known is the optimum; before, the smallest bound left says how far it may be from it.

In a chain of ops the cut touches one layout. In other graphs it touches several (elimination along the graph's order);
there, where an exchange runs beside other work, labels are lower bounds (`Label.odd`), plans that end with one are
simulated, and a dominated label is kept as long as such an exchange may still come (`shadow`).
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from parallel.search.completion_bounds import Potentials
from parallel.search.cost_table import Ground, Run
from parallel.search.labels import START, Label
from parallel.search.objective import Goal, Score
from parallel.search.op_bounds import Bounds
from parallel.search.result import Result

ROUNDING = 1e-12
"""Plans that are better by a smaller share than this are taken for equally good."""
WIDTH = 2
"""Labels that a dive keeps of each cut."""
FEW = 40
"""Candidates of an op up to which a good plan to begin with saves less than looking for it takes."""
MOST_CLOSE = 16
"""Candidates that it bounds closely in front of each."""
Chosen = Mapping[str, int]
UNKNOWN = Score(math.inf, math.inf)


@dataclass(frozen=True)
class _State:
    """A label at a cut."""

    r: int
    """The first of its runs."""
    chosen: dict[str, int]
    """Of the leaders that ops in front still touch."""
    label: Label
    shadow: bool
    """Dominated by another label, unless an exchange beside other work comes."""
    behind: _State | None
    picked: int
    """Candidate of run r's leader."""


def exact(ground: Ground, bounds: Bounds, goal: Goal, start: Sequence[Chosen], *, known: Score = UNKNOWN,
          memory_limit: int | None = None, stop: Callable[[], str | None] = lambda: None,
          progress: Callable[[Score, Score, int], None] = lambda best, bound, labels: None) -> Result:
    """The best plan of the ground's space. `start` are plans to begin with, and `known` is the score of a plan from
    elsewhere, which has to be beaten: the better they are, the less is looked at. `stop` is asked for a reason to end
    early; `progress` hears of the best plan, the bound and the labels."""
    return _Search(ground, bounds, goal, known, memory_limit, stop, progress).run(start)


class _Search:
    def __init__(self, ground: Ground, bounds: Bounds, goal: Goal, known: Score, memory_limit: int | None,
                 stop: Callable[[], str | None], progress: Callable[[Score, Score, int], None]) -> None:
        self.ground, self.goal, self.memory_limit = ground, goal, memory_limit
        self.stop, self.progress = stop, progress
        self.potentials = Potentials(ground, bounds, goal.extra_s)
        self.alive = [_alive(ground, r) for r in range(len(ground.runs))]
        self.pending = [_pending(ground, r) for r in range(len(ground.runs))]
        self.best: Chosen | None = None
        self.score = known
        self.floor = 0.0
        """No total of a plan that is better than the best known is below it."""
        self.labels = 0

    def run(self, start: Sequence[Chosen]) -> Result:
        try:
            stopped = self._search(start)
        except KeyboardInterrupt:
            stopped = "interrupted"
        bound = self.score if stopped is None else min(self.score, self.goal.least(self.floor))
        return Result(self.best, self.score, bound, self.labels, stopped)

    def _search(self, start: Sequence[Chosen]) -> str | None:
        """Returns why it ended early, if it did."""
        potentials = self.potentials
        given = [(potentials.of_plan(plan), plan) for plan in start]
        for least_s, plan in sorted(given, key=lambda found: found[0]):
            if least_s < self._limit:
                self._offer(plan)
        if max(map(len, self.ground.space.candidates.values())) > FEW or self.best is None:
            self._scout()
        potentials.narrow(self._limit)
        if potentials.empty:
            return None
        potentials.prepare()
        potentials.connect()
        for _ in range(2):
            potentials.solve(self._limit)
            if potentials.empty:
                return None
            self.floor = max(self.floor, min(potentials.least_s, self._limit))
            potentials.settle(self._limit)
            reason = self.stop()
            if reason is not None:
                return reason
        potentials.solve(self._limit)
        return None if potentials.empty else self._best_first()

    def _scout(self) -> None:
        """Look for a good plan among those that split no map and have all workers at every op: the fewer remain."""
        space, everyone = self.ground.space, max(self.ground.space.sizes)
        keep = []
        for run in self.ground.runs:
            degrees = np.array(space.candidates[run.leader])
            plain = (degrees[:, 3:] == 1).all(axis=1) & (degrees.prod(axis=1) == everyone)
            keep.append(plain if plain.any() else np.ones_like(plain))
        scout = self.potentials.among(keep)
        scout.prepare()
        scout.connect()
        scout.solve(math.inf)
        scout.settle(math.inf)
        scout.solve(math.inf)
        self._dive(scout)

    @property
    def _limit(self) -> float:
        """Timelines that are not below it cannot be part of a better plan."""
        return self.goal.limit_s(self.score) * (1 - ROUNDING)

    def _offer(self, plan: Chosen) -> None:
        label = self.ground.label(plan, self.memory_limit is not None)
        if self._fits(label):
            self._complete(label, plan)

    def _fits(self, label: Label) -> bool:
        return self.memory_limit is None or label.memory <= self.memory_limit

    def _complete(self, label: Label, plan: Chosen) -> None:
        timeline_s = self.goal.simulate(plan) if label.odd else label.timeline_s
        score = self.goal.score(timeline_s, plan)
        if score < self.score:
            self.score, self.best = score, dict(plan)

    def _best_first(self) -> str | None:
        """Returns why it ended early, if it did."""
        heap: list[tuple[float, int, _State, list[int] | None, list[float] | None, int]] = []
        kept: dict[tuple[int, tuple[int, ...]], list[_State]] = {}
        count, told = 0, time.monotonic()
        last, stages = len(self.ground.runs), self.potentials.stages
        positions = [{int(index): at for at, index in enumerate(stage.candidates)} for stage in stages]

        def push(bound: float, state: _State, order: list[int] | None, bounds: list[float] | None, at: int) -> None:
            nonlocal count
            count += 1
            heapq.heappush(heap, (bound, -count, state, order, bounds, at))

        for at, index in enumerate(stages[-1].candidates):
            begin = _State(last, {}, START, False, None, -1)
            state = self._extend(begin, int(index))
            if state is not None:
                self._enter(state, at, kept, push)
        while heap:
            bound, _, state, order, bounds, at = heapq.heappop(heap)
            self.floor = max(self.floor, bound)
            if bound >= self._limit:
                break
            if self.labels % 256 == 0:
                reason = self.stop()
                if reason is not None:
                    return reason
                if time.monotonic() - told > 0.5:
                    told = time.monotonic()
                    self.progress(self.score, min(self.score, self.goal.least(self.floor)), self.labels)
            r = state.r
            if order is None or bounds is None:
                position = positions[r][state.picked]
                values = self.potentials.in_front(state.label, r, position, self._limit)
                leader = self.ground.runs[r - 1].leader
                if leader in state.chosen:
                    place = positions[r - 1].get(state.chosen[leader])
                    order = [] if place is None else [place]
                else:
                    order = (values < self._limit).nonzero()[0].tolist()
                    order.sort(key=values.__getitem__)
                if order:
                    listed = [max(bound, float(values[j])) for j in order]
                    push(listed[0], state, order, listed, 0)
                continue
            if at + 1 < len(order):
                push(bounds[at + 1], state, order, bounds, at + 1)
            extended = self._extend(state, int(stages[r - 1].candidates[order[at]]))
            if extended is not None:
                self._enter(extended, order[at], kept, push)
        return None

    def _dive(self, potentials: Potentials) -> None:
        """Go from the loss to the images once, with the few best labels of every cut."""
        stages, last = potentials.stages, len(self.ground.runs)
        begin = _State(last, {}, START, False, None, -1)
        order = (stages[-1].means + stages[-1].rest).max(axis=0).argsort()[:WIDTH].tolist()
        front = [(state, at) for at in order if (state := self._extend(begin, int(stages[-1].candidates[at])))]
        for r in range(last - 1, 0, -1):
            reached: list[tuple[float, int, _State, int]] = []
            for state, position in front:
                values = potentials.in_front(state.label, r, position, math.inf, MOST_CLOSE)
                index = state.chosen.get(self.ground.runs[r - 1].leader)
                places = values.argsort()[:WIDTH].tolist() if index is None else \
                    (stages[r - 1].candidates == index).nonzero()[0].tolist()
                for at in places:
                    if (extended := self._extend(state, int(stages[r - 1].candidates[at]))) is not None:
                        bound = potentials.of_label(extended.label, r - 1, at)
                        reached.append((bound, len(reached), extended, at))
            front = [(state, at) for _, _, state, at in sorted(reached, key=lambda found: found[:2])[:WIDTH]]
        for state, _ in front:
            self._complete(state.label, _plan(self.ground, state))

    def _extend(self, state: _State, index: int) -> _State | None:
        """The state with the candidate `index` of the run in front; None if it does not fit the memory."""
        r = state.r - 1
        run: Run = self.ground.runs[r]
        chosen = {**state.chosen, run.leader: index}
        self.labels += 1
        label = self.ground.extend(state.label, run, chosen, self.memory_limit is not None)
        if not self._fits(label):
            return None
        shadow = state.shadow and (label.odd or self.pending[r])
        if state.shadow and not shadow:
            return None
        return _State(r, {name: chosen[name] for name in self.alive[r]}, label, shadow, state, index)

    def _enter(self, state: _State, at: int, kept: dict[tuple[int, tuple[int, ...]], list[_State]],
               push: Callable[[float, _State, list[int] | None, list[float] | None, int], None]) -> None:
        """Keep the state for later, unless it is complete, dominated or too late."""
        if state.r == 0:
            if state.label.odd or state.label.timeline_s < self._limit or self.best is None:
                self._complete(state.label, _plan(self.ground, state))
            return
        bound = self.potentials.of_label(state.label, state.r, at)
        if bound >= self._limit:
            return
        others = kept.setdefault((state.r, tuple(state.chosen.values())), [])
        memory = self.memory_limit is not None
        if not state.shadow and any(not other.label.odd and other.label.dominates(state.label, memory)
                                    for other in others):
            if not (self.pending[state.r] or state.label.odd):
                return
            if not self.pending[state.r]:
                return
            state = _State(state.r, state.chosen, state.label, True, state.behind, state.picked)
        elif not state.shadow:
            if not state.label.odd:
                others[:] = [other for other in others if not state.label.dominates(other.label, memory)]
            others.append(state)
        push(bound, state, None, None, 0)


def _plan(ground: Ground, state: _State) -> dict[str, int]:
    plan: dict[str, int] = {}
    at: _State | None = state
    while at is not None and at.behind is not None:
        plan[ground.runs[at.r].leader] = at.picked
        at = at.behind
    return {name: plan[name] for name in ground.space.decided}


def _alive(ground: Ground, r: int) -> tuple[str, ...]:
    """Leaders of the runs from r on that ops in front of r follow, or feed."""
    leaders = ground.space.leaders
    behind = {run.leader for run in ground.runs[r:]}
    names = {name for run in ground.runs[:r] for name in run.ops}
    touched = {leaders[name] for name in names}
    for name in names:
        edges = [*ground.aside[name], *([ground.ahead[name]] if name in ground.ahead else [])]
        touched.update(leaders[edge.consumer] for edge in edges if edge.consumer not in names)
    return tuple(name for name in ground.space.decided if name in behind & touched)


def _pending(ground: Ground, r: int) -> bool:
    """Whether an op in front of run r feeds another than the next one, behind."""
    names = {name for run in ground.runs[:r] for name in run.ops}
    return any(edge.consumer not in names for name in names for edge in ground.aside[name])
