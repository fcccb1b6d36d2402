"""Bounds never exceed what they bound: costs, and the rest of a plan."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from parallel.search.completion_bounds import BRANCHES, CompletionBounds, without_exchanges
from tests.support.made_clusters import link
from tests.support.made_searches import case, label_of
from tests.support.small_models import MODELS, graph_of

ALMOST = 1 + 1e-9
LINKS = {
    "own": {},
    "shared": {"inside": link(3e6, 1e-4, shared=True), "between": link(1e6, 3e-4, shared=True)},
    "memory": {"shared_memory": True},
    "shared_cores": {"shared_cores": True},
    "collectives": {"collectives": True},
    "uneven": {"uneven": True, "shared_cores": True},
    "uneven, collectives": {"uneven": True, "collectives": True},
    "uneven, shared": {
        "uneven": True,
        "inside": link(3e6, 1e-4, shared=True),
        "between": link(1e6, 0.0, True),
    },
}


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize("name", MODELS)
def test_bounds_of_costs(name: str, kind: str) -> None:
    """Bounds from one part, one worker and one node do not exceed the costs of candidates."""
    random = np.random.default_rng(3)
    for workers in (3, 6):
        table = case(graph_of(name), workers, **LINKS[kind]).table()
        few = {leader: np.isin(kept, random.choice(kept, 4)) for leader, kept in table.kept.items()}
        table = table.among(few)
        for op, bounds in enumerate(table.ops):
            bounds = bounds.take(np.arange(len(bounds.exact)))
            exact = table.exact_op(op, np.arange(len(bounds.exact)))
            for field in ("forward_s", "backward_s", "sum_s", "update_s", "gather_s"):
                assert (getattr(bounds, field) <= getattr(exact, field) * ALMOST).all(), (op, field)
            assert (bounds.shared == exact.shared).all() and exact.exact.all()
        for some in (table.everyone[-1:, :1], table.everyone[:1]):
            table.bound_edges(some)
            bounded = {
                edge: (costs.forward_s.copy(), costs.backward_s.copy()) for edge, costs in table.edges.items()
            }
            table.bound_edges(table.everyone)
            for edge, costs in table.edges.items():
                assert costs.exact.all()
                assert (bounded[edge][0] <= costs.forward_s * ALMOST).all(), edge
                assert (bounded[edge][1] <= costs.backward_s * ALMOST).all(), edge


def test_exact_costs_are_the_cost_models() -> None:
    random, made = Random(3), case(graph_of("residual"), 4)
    table, space, model = made.table(), made.space, made.cost_model
    table.bound_edges(table.everyone[:1])
    ops = space.graph.ops
    for edge, costs in table.edges.items():
        p, q = (random.randrange(size) for size in (costs.exact.shape[0], costs.exact.shape[-1]))
        q = p if costs.exact.ndim == 1 else q
        found = table.exact_edge(edge, np.array([p]), np.array([q]))
        layouts = [
            space.layout(ops[op].name, index) for op, index in ((edge.producer, p), (edge.consumer, q))
        ]
        expected = model.exchange(
            ops[edge.producer], layouts[0], ops[edge.consumer], layouts[1], edge.which, space.batch_size
        )
        assert (found[0][0], found[1][0]) == expected


@pytest.mark.parametrize(
    ("name", "workers"), [("tower", 2), ("towers", 3), ("weightless", 4), ("residual", 2), ("branches", 2)]
)
@pytest.mark.parametrize("exact", [False, True])
def test_bounds_of_plans(name: str, workers: int, exact: bool) -> None:
    """Bounds of all plans, and of every label of a plan, do not exceed its time."""
    random, made = Random(5), case(graph_of(name), workers)
    table = made.table()
    table.bound_edges(table.everyone if exact else table.everyone[:1, :1])
    bounds = CompletionBounds(table, made.objective.extra_s)
    plans = [made.some_plan(random) for _ in range(12)]
    timeline_s = np.array([made.timeline_s(plan) for plan in plans])
    assert (bounds.least_s <= timeline_s * ALMOST).all()
    for plan, seconds in zip(plans, timeline_s, strict=True):
        keep, pairs = bounds.within(seconds * (1 + 1e-6))
        few = without_exchanges(table, made.objective.extra_s, seconds * (1 + 1e-6))
        assert all(keep[leader][at] and few[leader][at] for leader, at in plan.items())
        for edge, may in pairs.items():
            assert may[plan[table.leaders[edge.producer]], plan[table.leaders[edge.consumer]]]
    chosen = {name: np.array([plan[name] for plan in plans]) for name in made.space.decided}
    for r, run in enumerate(table.runs):
        before = {
            name: at for name, at in chosen.items() if any(name == other.leader for other in table.runs[:r])
        }
        labels = label_of(table, plans, run.ops[0])
        for known in ({}, before):
            bound = (BRANCHES @ labels.sums + bounds.in_front(r, known)).max(axis=0)
            assert (bound <= timeline_s * ALMOST).all(), (run, list(known))
