"""Labels: the timeline of a plan from the back, and when one label may replace another."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from parallel.search.labels import Labels, nondominated
from tests.support.made_searches import Case, case, label_of
from tests.support.small_models import MODELS, graph_of


def some_plans(made: Case, random: Random, count: int) -> list[dict[str, int]]:
    return [made.some_plan(random) for _ in range(count)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("workers", [2, 3, 4, 6])
def test_a_plans_label_is_its_timeline(name: str, workers: int) -> None:
    """For chains, and for graphs with exchanges that overlap with other work."""
    made = case(graph_of(name), workers)
    plans = some_plans(made, Random(workers), 8)
    labels = label_of(made.table(), plans)
    assert labels.timeline_s == pytest.approx([made.timeline_s(plan) for plan in plans], rel=1e-12)
    assert labels.memory.tolist() == [made.memory(plan) for plan in plans]


@pytest.mark.parametrize("name", ["residual", "branches", "weightless"])
@pytest.mark.parametrize("slowdown", [0.0, 0.3, 1.0])
def test_labels_of_random_costs(name: str, slowdown: float) -> None:
    for seed in range(3):
        made = case(graph_of(name), 2, seed=seed, overlap_slowdown=slowdown, dims="nch", sizes=(2,))
        plans = some_plans(made, Random(seed), 4)
        assert label_of(made.table(), plans).timeline_s == pytest.approx(
            [made.timeline_s(plan) for plan in plans], rel=1e-12
        )


@pytest.mark.parametrize("name", ["residual", "branches", "weightless"])
def test_a_dominating_label_is_never_later(name: str) -> None:
    """Two plans that are alike in front of a cut: if the label of one dominates that of the other there, its timeline
    is no longer, whatever is in front."""
    random, seen = Random(7), 0
    for seed in range(4):
        made = case(
            graph_of(name),
            2,
            seed=seed,
            overlap_slowdown=random.choice([0.0, 0.3, 1.0]),
            dims="nch",
            sizes=(2,),
        )
        table = made.table()
        for run in table.runs[1:]:
            front = {other.leader for other in table.runs if other.ops[0] < run.ops[0]}
            fixed = {at: index for at, index in made.some_plan(random).items() if at in front}
            plans = [{**plan, **fixed} for plan in some_plans(made, random, 30)]
            criteria = label_of(table, plans, run.ops[0]).criteria()
            timeline_s = label_of(table, plans).timeline_s
            better = (criteria[:, None] <= criteria[None]).all(axis=2)
            assert (timeline_s[:, None] <= timeline_s[None] + 1e-12)[better].all()
            seen += int((better & (timeline_s[:, None] < timeline_s[None] - 1e-12)).sum())
    assert seen > 100


def label(**changes: float) -> Labels:
    """Return a label of a chain."""
    values = {
        "compute": 4.0,
        "network": 4.0,
        "updates": 5.0,
        "gathers": 5.0,
        "alpha": 1.0,
        "eta": 1.0,
        "gamma": 1.0,
        "memory": 1,
        **changes,
    }
    rows = ("compute", "network", "updates", "gathers")
    times = {(row, "forward"): np.array([values[row]]) for row in rows}
    alpha, eta, gamma = (np.array([values[name]]) for name in ("alpha", "eta", "gamma"))
    return Labels(times, alpha, eta, gamma, {}, np.array([values["memory"]]))


@pytest.mark.parametrize(
    "worse",
    [
        {"compute": 4.1, "alpha": 0.8, "eta": 0.8, "gamma": 0.8},
        {"network": 4.1, "alpha": 0.8, "eta": 0.8, "gamma": 0.8},
        {"updates": 5.1},
        {"gathers": 5.1},
        {"memory": 2},
        {"alpha": 1.1},
        {"alpha": 1.1, "compute": 3.8},
        {"alpha": 1.1, "network": 3.8},
        {"eta": 1.1},
        {"eta": 1.1, "compute": 3.8},
        {"eta": 1.1, "network": 3.8},
        {"gamma": 1.1},
        {"gamma": 1.1, "compute": 3.8},
        {"gamma": 1.1, "network": 3.8},
    ],
    ids=str,
)
def test_a_label_that_is_worse_in_one_sum_alone_does_not_dominate(worse: dict[str, float]) -> None:
    base, other = label(), label(**worse)
    assert (base.criteria() <= base.criteria()).all()
    assert not (other.criteria() <= base.criteria()).all()


def test_nondominated_labels_are_those_that_none_other_replaces() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        criteria, groups = random.integers(0, 4, (40, 3)).astype(float), random.integers(0, 5, 40)
        kept = nondominated(criteria, groups)
        for i in range(40):
            others = [j for j in kept if groups[j] == groups[i] and (criteria[j] <= criteria[i]).all()]
            assert others
            assert i not in kept or others == [i]
    assert len(nondominated(np.zeros((0, 3)), np.zeros(0, dtype=int))) == 0
