"""Labels: the timeline of a plan as a fold, and when one label may replace another."""

from __future__ import annotations

from random import Random

import pytest
from made_searches import case
from small_models import graph_of

from parallel.search.labels import Label, Work, prepend

CHAINS = ("tower", "towers", "odd", "weightless")


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("workers", [2, 3, 4, 6])
def test_a_chains_label_is_its_timeline(name: str, workers: int) -> None:
    random, made = Random(workers), case(graph_of(name), workers)
    for _ in range(8):
        chosen = made.some_plan(random)
        label = made.ground.label(chosen)
        assert not label.odd
        assert label.timeline_s == pytest.approx(made.timeline_s(chosen), rel=1e-12)
        assert label.memory == made.ground.memory(chosen)


@pytest.mark.parametrize("name", ["residual", "branches", "weightless"])
def test_labels_of_random_prices(name: str) -> None:
    """Where a branch moves something the label is a lower bound, elsewhere it is the timeline."""
    random, odd, even = Random(1), 0, 0
    for seed in range(40):
        made = case(graph_of(name), 2, seed=seed)
        for _ in range(3):
            chosen = made.some_plan(random)
            label, timeline_s = made.ground.label(chosen), made.timeline_s(chosen)
            odd, even = odd + label.odd, even + (not label.odd)
            if label.odd:
                assert label.timeline_s <= timeline_s * (1 + 1e-12)
            else:
                assert label.timeline_s == pytest.approx(timeline_s, rel=1e-12)
    assert (odd == 0) == (name == "weightless")
    assert even or name != "weightless"


def test_data_parallel_residual_networks_are_exact() -> None:
    made = case(graph_of("residual"), 2, dims="n")
    for chosen in ({name: i for name in made.ground.space.decided} for i in range(2)):
        label = made.ground.label(chosen)
        assert not label.odd
        assert label.timeline_s == pytest.approx(made.timeline_s(chosen), rel=1e-12)


def works(random: Random) -> Work:
    shared = random.random() < 0.6
    moves = random.choice([0.0, 0.5, 3.0])
    return Work(random.random(), random.random(), random.random() < 0.8, shared, moves * random.random(),
                random.random() * 0.3, moves * random.random(), random.randrange(9))


def extended(label: Label, ops: list[tuple[Work, tuple[float, float] | None]], slowdown: float) -> Label:
    for work, exchange in ops:
        label = prepend(label, work, exchange, slowdown)
    return label


@pytest.mark.parametrize("slowdown", [0.0, 0.3, 1.0])
def test_a_dominating_label_is_never_later(slowdown: float) -> None:
    """Whatever comes in front. Both labels end with the same op, as at a cut, where its layout is the same."""
    random, seen = Random(7), 0
    for _ in range(4000):
        exchange = None if random.random() < 0.5 else (random.random(), random.random())
        last = works(random)
        one, other = (prepend(extended(Label(), [(works(random), None), (works(random), (0.1, 0.2))], slowdown), last,
                              exchange, slowdown) for _ in range(2))
        if not one.dominates(other, memory=True):
            continue
        seen += 1
        for _ in range(5):
            ops = [(works(random), None if random.random() < 0.5 else (random.random(), random.random()))
                   for _ in range(random.randrange(4))]
            assert extended(one, ops, slowdown).timeline_s <= extended(other, ops, slowdown).timeline_s + 1e-12
            assert extended(one, ops, slowdown).memory <= extended(other, ops, slowdown).memory
    assert seen > 50


def test_a_label_that_is_better_in_some_things_alone_does_not_dominate() -> None:
    one, other = Label(c=1.0, e=1.0, n=2.0), Label(c=2.0, e=2.0, n=1.0)
    assert not one.dominates(other, memory=False) and not other.dominates(one, memory=False)
    assert one.dominates(one, memory=True)
    assert not one._replace(memory=2).dominates(one._replace(memory=1), memory=True)
    assert one._replace(memory=2).dominates(one._replace(memory=1), memory=False)
