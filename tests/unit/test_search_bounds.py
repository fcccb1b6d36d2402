"""Bounds never exceed what they bound: prices, the rest of a plan, pipelines and passes."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from parallel.search.completion_bounds import Potentials
from parallel.search.labels import START
from parallel.search.op_bounds import link_seconds
from tests.support.made_clusters import link
from tests.support.made_searches import Case, case
from tests.support.small_models import MODELS, graph_of

ALMOST = 1 + 1e-9
LINKS = {
    "own": {},
    "shared": {"inside": link(3e6, 1e-4, shared=True), "between": link(1e6, 3e-4, shared=True)},
    "memory": {"shared_memory": True},
    "shared_cores": {"shared_cores": True},
}


def edges_of(made: Case) -> list:  # type: ignore[type-arg]
    return [*made.ground.ahead.values(), *(edge for edges in made.ground.aside.values() for edge in edges)]


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize("name", MODELS)
def test_bounds_of_prices(name: str, kind: str) -> None:
    random = Random(f"{name} {kind}")
    for workers in (2, 3, 4, 6, 8):
        made = case(graph_of(name), workers, **LINKS[kind])
        space, ground, bounds = made.ground.space, made.ground, made.bounds
        for op in space.graph.names:
            index = random.randrange(len(space.degrees[op]))
            work, costs = ground.work(op, index), bounds.costs(op)
            for bound, price in ((costs.forward_s, work.forward_s), (costs.backward_s, work.backward_s),
                                 (costs.sum_s, work.sum_s), (costs.update_s, work.update_s),
                                 (costs.gather_s, work.gather_s)):
                assert bound[index] <= price * ALMOST, (op, space.layout(op, index))
        for edge in edges_of(made):
            producers, consumers = (np.array([random.randrange(len(space.degrees[op])) for _ in range(4)])
                                    for op in (edge.producer, edge.consumer))
            if space.leaders[edge.producer] == space.leaders[edge.consumer]:
                consumers = producers
            fast, closer = bounds.exchange_s(edge, producers, consumers), bounds.closer_s(edge, producers, consumers)
            for i, (p, c) in enumerate(zip(producers.tolist(), consumers.tolist(), strict=True)):
                price = ground.exchange(edge, p, c) or (0.0, 0.0)
                where = edge, str(space.layout(edge.producer, p)), str(space.layout(edge.consumer, c))
                assert fast[i] <= min(price) * ALMOST, where
                if closer is not None:
                    assert closer[0][i] <= price[0] * ALMOST and closer[1][i] <= price[1] * ALMOST, where


def test_close_bounds_are_close() -> None:
    """On a few workers all of them are looked at, so that little is missing."""
    random, made, shares = Random(3), case(graph_of("tower"), 4), []
    for edge in made.ground.ahead.values():
        space = made.ground.space
        p, c = (random.randrange(len(space.degrees[op])) for op in (edge.producer, edge.consumer))
        c = p if space.leaders[edge.producer] == space.leaders[edge.consumer] else c
        price, bound = made.ground.exchange(edge, p, c), made.bounds.closer_s(edge, np.array([p]), np.array([c]))
        if price is not None and bound is not None:
            shares.append(bound[0][0] / price[0])
    assert len(shares) > 4 and min(shares) > 0.95


def test_link_seconds_are_the_links() -> None:
    made = link(2e5, 1e-3)
    curved = type(made)(1e-4, ((1e3, 1e6), (1e5, 2e7), (1e6, 3e7)))
    loads = np.array([0, 1, 999, 1e3, 5e4, 1e5, 7e5, 1e6, 1e9])
    for one in (made, curved):
        assert link_seconds(one, loads) == pytest.approx([one.seconds(load) for load in loads], rel=1e-12)


@pytest.mark.parametrize(("name", "workers"), [("tower", 2), ("towers", 3), ("weightless", 4), ("residual", 2)])
def test_bounds_of_plans(name: str, workers: int) -> None:
    """The potentials of a plan's candidates, of every label on the way to it, and of its whole, are below its time."""
    random = Random(5)
    made = case(graph_of(name), workers)
    ground = made.ground
    potentials = Potentials(ground, made.bounds, made.goal.extra_s)
    whole = [(plan, potentials.of_plan(plan)) for plan in (made.some_plan(random) for _ in range(12))]
    potentials.prepare()
    potentials.connect()
    for settle in (False, True):
        potentials.solve(np.inf)
        if settle:
            potentials.settle(np.inf)
        for plan, bound in whole:
            timeline_s = made.timeline_s(plan)
            assert bound <= timeline_s * ALMOST
            assert potentials.least_s <= timeline_s * ALMOST
            label = START
            for r in reversed(range(len(ground.runs))):
                run = ground.runs[r]
                at = plan[run.leader]
                stage = potentials.stages[r]
                assert float((stage.means + stage.rest + stage.past)[:, at].max()) <= timeline_s * ALMOST
                if r + 1 < len(ground.runs):
                    position = plan[ground.runs[r + 1].leader]
                    assert potentials.in_front(label, r + 1, position, np.inf)[at] <= timeline_s * ALMOST
                label = ground.extend(label, run, plan)
                assert potentials.of_label(label, r, at) <= timeline_s * ALMOST
