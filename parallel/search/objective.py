"""The objective: the step of a plan, with the loading of its images.

total = timeline, and the loading where it does not overlap with the step
step  = max(total + step overhead, loading where it overlaps)
score = (step, total)        compared in this order: of plans that wait for their images alike,
                             the one with the smallest total is best
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from parallel.cluster import Cluster
from parallel.graph import INPUT
from parallel.graph.box import cut, degree
from parallel.search.space import Space
from parallel.simulator.partition import Floats
from parallel.simulator.timeline import Timeline


class Score(NamedTuple):
    """Seconds."""

    step_s: float
    total_s: float


class Objective:
    """Scores of a space's plans on a cluster; `simulate` returns the timeline of a plan in seconds."""

    def __init__(
        self, space: Space, cluster: Cluster, simulate: Callable[[Mapping[str, int]], float]
    ) -> None:
        self._space, self._cluster, self.simulate = space, cluster, simulate
        self._loading: dict[tuple[tuple[str, int], ...], float] = {}
        self._readers = [op.name for op in space.graph if INPUT in op.inputs]
        first = self._readers[0]
        loading = np.array([self._load_s({first: i}) for i in range(len(space.candidates[first]))])
        self._overlaps = cluster.data_overlaps
        self.extra_s: Floats = np.zeros_like(loading) if self._overlaps else loading
        """The least that each candidate of the first op adds to the total [l]."""
        self._least_loading_s = float(loading.min()) if self._overlaps else 0.0

    def _load_s(self, chosen: Mapping[str, int]) -> float:
        """Return the seconds of loading for these candidates of the ops that read the images."""
        if not self._cluster.data_s_per_image:
            return 0.0
        blocks = [
            (cuts[0], math.prod(map(degree, cuts)))
            for name, index in chosen.items()
            for cuts in [self._space.cuts[name][index]]
        ]
        key = tuple(sorted((str(n), size) for n, size in blocks))
        if key not in self._loading:
            images = [0] * self._space.workers
            for n, size in blocks:
                for place in range(size):
                    start, stop = cut(self._space.batch_size, n, place * degree(n) // size)
                    images[self._space.order[place]] += stop - start
            self._loading[key] = self._cluster.data_s(images)
        return self._loading[key]

    def score(self, timeline_s: float, plan: Mapping[str, int]) -> Score:
        """Return the score of a plan with this timeline."""
        leaders = self._space.leaders
        loading = self._load_s({name: plan[leaders[name]] for name in self._readers})
        return self._score(timeline_s + (0.0 if self._overlaps else loading), loading)

    def score_of(self, timeline: Timeline) -> Score:
        """Return the score of a simulated plan."""
        loading = self._cluster.data_s(timeline.images)
        return self._score(timeline.end_s + (0.0 if self._overlaps else loading), loading)

    def _score(self, total_s: float, loading_s: float) -> Score:
        step_s = total_s + self._cluster.step_overhead_s
        return Score(max(step_s, loading_s) if self._overlaps else step_s, total_s)

    def least(self, total_s: float) -> Score:
        """Return the best score that a plan with this total or a larger one can have."""
        return self._score(total_s, self._least_loading_s)

    def limit_s(self, score: Score) -> float:
        """Return the total that a plan must be below to have a better score than `score`."""
        own_s = score.total_s + self._cluster.step_overhead_s
        waits_longer = score.step_s > max(own_s, self._least_loading_s)
        return score.step_s - self._cluster.step_overhead_s if waits_longer else score.total_s
