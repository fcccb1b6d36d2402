"""Labels: the timeline of a plan as a fold, and when one label may replace another."""

from __future__ import annotations

from random import Random

import pytest

from parallel.search.labels import Label, Work, prepend
from tests.support.made_searches import case
from tests.support.small_models import graph_of

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
    for seed in range(12):
        made = case(graph_of(name), 2, seed=seed)
        for _ in range(4):
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
                random.random() * 0.3, moves * random.random())


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
    assert seen > 50


BASE = Label(c=4.0, e=4.0, n=4.0, a=5.0, g=5.0, alpha=1.0, eta=1.0, gamma=1.0)


@pytest.mark.parametrize("worse", [
    {"c": 4.1, "alpha": 0.8, "eta": 0.8, "gamma": 0.8}, {"n": 4.1, "alpha": 0.8, "eta": 0.8, "gamma": 0.8},
    {"a": 5.1}, {"g": 5.1},
    {"alpha": 1.1}, {"alpha": 1.1, "c": 3.8}, {"alpha": 1.1, "n": 3.8},
    {"eta": 1.1}, {"eta": 1.1, "c": 3.8}, {"eta": 1.1, "n": 3.8},
    {"gamma": 1.1}, {"gamma": 1.1, "c": 3.8}, {"gamma": 1.1, "n": 3.8},
], ids=str)
def test_a_label_that_is_better_in_some_things_alone_does_not_dominate(worse: dict[str, float]) -> None:
    """Of every sum that matters, one that is larger alone."""
    other = BASE._replace(**worse)
    assert BASE.dominates(BASE, memory=True)
    assert not other.dominates(BASE, memory=False)


def test_memory_matters_where_it_may_bind() -> None:
    assert not BASE._replace(memory=2).dominates(BASE._replace(memory=1), memory=True)
    assert BASE._replace(memory=2).dominates(BASE._replace(memory=1), memory=False)


def drawn(random: Random, stages: int, ways: int) -> tuple[list[list[Work]], dict[tuple[int, int, int], object]]:
    """A chain whose ops have so many layouts each, and what is exchanged between any two."""
    scale = [random.choice([0.1, 1.0, 5.0]) for _ in range(5)]

    def work() -> Work:
        f, b, s, u, g = (rate * random.random() for rate in scale)
        return Work(f, b, random.random() < 0.8, random.random() < 0.7, s, u, g)

    exchanges = {(i, p, q): None if random.random() < 0.6 else (random.random(), random.random())
                 for i in range(stages) for p in range(ways) for q in range(ways)}
    return [[work() for _ in range(ways)] for _ in range(stages)], exchanges  # type: ignore[return-value]


@pytest.mark.parametrize("slowdown", [0.0, 0.5])
def test_keeping_undominated_labels_alone_loses_no_optimum(slowdown: float) -> None:
    random, dropped = Random(11), 0
    for _ in range(150):
        stages, ways = 6, 3
        ops, exchanges = drawn(random, stages, ways)
        every: dict[int, list[Label]] = {q: [prepend(Label(), ops[-1][q], None, slowdown)] for q in range(ways)}
        kept = {q: list(labels) for q, labels in every.items()}
        for i in reversed(range(stages - 1)):
            every, kept = ({p: [prepend(label, ops[i][p], exchanges[i, p, q], slowdown)  # type: ignore[arg-type]
                                for q, labels in behind.items() for label in labels] for p in range(ways)}
                           for behind in (every, kept))
            for p, labels in kept.items():
                best: list[Label] = []
                for label in sorted(labels, key=lambda found: found.timeline_s):
                    if not any(other.dominates(label, memory=False) for other in best):
                        best.append(label)
                dropped += len(labels) - len(best)
                kept[p] = best
        optimum = min(label.timeline_s for labels in every.values() for label in labels)
        kept_best = min(label.timeline_s for labels in kept.values() for label in labels)
        assert kept_best == pytest.approx(optimum, rel=1e-12)
    assert dropped > 1000
