"""The exact method against every plan of small spaces, with random costs and with real ones."""

from __future__ import annotations

import itertools
import math
from random import Random

import pytest

from parallel.search import exact as exact_method
from parallel.search.exact import exact
from parallel.search.exhaustive import exhaustive
from parallel.search.objective import Score
from parallel.search.result import Limits
from tests.support.made_clusters import Rates, link
from tests.support.made_searches import Case, case
from tests.support.small_models import graph_of

NEAR = 1e-9


@pytest.fixture(autouse=True)
def narrow_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make passes so narrow that small spaces need several."""
    monkeypatch.setattr(exact_method, "WIDTHS", (1, 4))


def check(made: Case, memory_limit: int | None = None) -> Score:
    """Check that the exact method finds what the exhaustive one finds."""
    limits = Limits(memory_bytes=memory_limit)
    oracle = exhaustive(made.space, made.objective, made.cost_model, limits)
    found = exact(made.table(), made.objective, [], limits)
    assert found.stopped is None and oracle.stopped is None
    assert oracle.looked_at == made.space.count
    assert (found.chosen is None) == (oracle.chosen is None)
    assert found.score.step_s == pytest.approx(oracle.score.step_s, rel=NEAR)
    assert found.bound.step_s == pytest.approx(oracle.score.step_s, rel=NEAR)
    if found.chosen is not None:
        assert made.objective.score(
            made.timeline_s(dict(found.chosen)), found.chosen
        ).step_s == pytest.approx(found.score.step_s, rel=NEAR)
        assert memory_limit is None or made.memory(found.chosen) <= memory_limit
    return found.score


@pytest.mark.parametrize("seed", range(12))
def test_random_costs_of_a_chain(seed: int) -> None:
    """Nothing is known about the costs in advance, so that the result depends on labels and their dominance."""
    for slowdown in (0.0, 0.4):
        check(case(graph_of("weightless"), 2, dims="nck", seed=seed, overlap_slowdown=slowdown))


@pytest.mark.parametrize(("seed", "slowdown"), [(0, 0.3), (1, 0.0), (2, 1.0), (11, 0.1)])
def test_random_costs_of_branches(seed: int, slowdown: float) -> None:
    """Almost all exchanges overlap with other work."""
    check(case(graph_of("branches"), 2, dims="nch", sizes=(2,), seed=seed, overlap_slowdown=slowdown))


@pytest.mark.parametrize("seed", range(6))
def test_random_costs_and_a_memory_limit(seed: int) -> None:
    made = case(graph_of("weightless"), 2, dims="nc", seed=seed)
    needs = sorted(made.memory(plan) for plan in made.plans())
    scores = [check(made, memory_limit=needs[len(needs) * i // 6]) for i in (0, 1, 3, 5)]
    assert sorted(scores, reverse=True) == scores
    assert check(made, memory_limit=needs[0] - 1).step_s == math.inf


@pytest.mark.parametrize(
    ("name", "workers", "dims", "sizes"),
    [
        ("weightless", 2, "nckhw", None),
        ("weightless", 3, "nck", None),
        ("tower", 2, "nc", (2,)),
        ("tower", 4, "n", None),
        ("towers", 2, "nck", (2,)),
        ("odd", 2, "nch", (1, 2)),
        ("branches", 2, "nc", (2,)),
        ("residual", 2, "n", None),
    ],
)
def test_real_costs(name: str, workers: int, dims: str, sizes: tuple[int, ...] | None) -> None:
    made = case(graph_of(name), workers, dims=dims, sizes=sizes)
    assert 1 < made.space.count < 3000
    check(made)


@pytest.mark.parametrize(
    "numbers",
    [
        {"inside": link(1e7, shared=True), "between": link(2e6, shared=True)},
        {"compute": Rates(1e-5), "inside": link(1e9)},
        {"compute": Rates(1e-8), "inside": link(1e5, 1e-3)},
        {"data_s_per_image": 1e-3, "data_shared": True},
        {"data_s_per_image": 1e-2, "data_overlaps": True},
        {"data_s_per_image": 1e-3, "data_overlaps": True, "data_shared": True},
        {"step_overhead_s": 1.0},
        {"collectives": True, "between": link(2e6, shared=True)},
    ],
)
def test_real_costs_of_other_clusters(numbers: dict[str, object]) -> None:
    check(case(graph_of("weightless"), 2, dims="nckh", **numbers))


@pytest.mark.parametrize(
    ("name", "workers", "dims", "numbers"),
    [
        ("weightless", 2, "nck", {}),
        ("weightless", 3, "nc", {"shared_cores": True}),
        ("tower", 2, "n", {"data_s_per_image": 1e-3, "data_overlaps": True}),
        ("residual", 2, "n", {"data_s_per_image": 1e-4, "sizes": (2,)}),
        ("branches", 2, "n", {"compute": Rates(1e-5)}),
    ],
)
def test_real_costs_of_uneven_clusters(
    name: str, workers: int, dims: str, numbers: dict[str, object]
) -> None:
    made = case(graph_of(name), workers, dims=dims, uneven=True, **numbers)
    assert any(
        isinstance(by, tuple) for found in made.space.candidates.values() for cuts in found for by in cuts
    )
    assert 1 < made.space.count < 8000
    check(made)


@pytest.mark.parametrize("seed", range(4))
def test_random_costs_of_uneven_clusters(seed: int) -> None:
    check(case(graph_of("weightless"), 2, dims="nc", seed=seed, overlap_slowdown=0.4, uneven=True))


def test_a_whole_network_in_a_space_too_large_to_count() -> None:
    """No random plan, and none that differs from the optimum in one op, is better."""
    random, made = Random(0), case(graph_of("tower"), 4)
    assert made.space.count > 1e7
    found = exact(made.table(), made.objective, [])
    assert found.chosen is not None and found.stopped is None
    for _ in range(200):
        assert made.timeline_s(made.some_plan(random)) >= found.score.total_s * (1 - NEAR)
    for name, candidates in made.space.candidates.items():
        for index in range(len(candidates)):
            assert made.objective.simulate({**found.chosen, name: index}) >= found.score.total_s * (1 - NEAR)


def test_plans_to_begin_with_and_known_scores() -> None:
    made = case(graph_of("tower"), 2)
    best = exact(made.table(), made.objective, [])
    assert best.chosen is not None
    again = exact(made.table(), made.objective, [dict(best.chosen)])
    assert again.score == best.score and again.looked_at <= best.looked_at
    beaten = exact(
        made.table(), made.objective, [], Limits(Score(best.score.step_s / 2, best.score.total_s / 2))
    )
    assert beaten.chosen is None and beaten.stopped is None


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_what_is_stopped_has_a_bound(after: int) -> None:
    made = case(graph_of("tower"), 4)
    best = exact(made.table(), made.objective, [])
    reasons = itertools.chain([None] * after, itertools.repeat("enough"))
    found = exact(made.table(), made.objective, [], Limits(stop=lambda: next(reasons)))
    assert found.stopped == ("enough" if after < 2 or found.stopped else None)
    assert found.chosen is not None
    assert 0 < found.bound.step_s <= best.score.step_s * (1 + NEAR)
    assert found.score.step_s >= best.score.step_s * (1 - NEAR)


def test_an_interrupt_gives_the_best_so_far() -> None:
    made = case(graph_of("tower"), 2)
    asked = 0

    def stop() -> str | None:
        nonlocal asked
        asked += 1
        if asked == 6:  # in a pass over all candidates, which has bounds
            raise KeyboardInterrupt
        return None

    found = exact(made.table(), made.objective, [], Limits(stop=stop))
    assert found.stopped == "interrupted" and found.chosen is not None
    assert 0 < found.bound.step_s <= found.score.step_s


def test_too_many_plans_to_try_them_all() -> None:
    made = case(graph_of("tower"), 4)
    with pytest.raises(ValueError, match="search.method=exhaustive would simulate .* plans"):
        exhaustive(made.space, made.objective, made.cost_model)
