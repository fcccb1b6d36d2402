"""Validation of the simulator: measured plans, held-out plans, a turn in real processes, invalid
input."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest

from parallel.cli.ranked import run_ranked
from parallel.cli.values import prefixed_options
from parallel.cluster import Measured
from parallel.cluster.op_key import OpKey
from parallel.cluster.recording import RecordingCompute
from parallel.cluster.table import FORWARD, Curve, Table, Timing
from parallel.config import ClusterConfig
from parallel.data.random_batch import random_batch
from parallel.graph import trace
from parallel.plans import Layout, Plan, make_plan
from parallel.program.lowering import lower
from parallel.results.validation import StepSplit
from parallel.runtime.communication.opening import open_world
from parallel.runtime.execution.runtime import Runtime
from parallel.runtime.instrumentation.clock import Clock
from parallel.validate import run
from parallel.validation.measure import Measurement, Turn, validated_plan
from parallel.validation.options import ValidationOptions
from parallel.validation.plans import PlanChooser, PredictedPlan
from tests.support.made_clusters import made_cluster
from tests.support.small_models import CLASSES, build, graph_of
from tests.support.workers import Workers

TOWER = graph_of("tower")
ALONE = make_plan(TOWER, 2, {"conv1": Layout(on=(0,))})


def chooser(monkeypatch: pytest.MonkeyPatch, found: str, batch_size: int = 12) -> PlanChooser:
    """Return a chooser whose search finds the named plan."""
    made = PlanChooser(TOWER, 2, batch_size, made_cluster(data_s_per_image=9.0), "fp32")
    monkeypatch.setattr(made, "optimum", lambda named: named[found])
    return made


def test_one_worker_has_no_other_layouts() -> None:
    """Its plans differ in micro-batches alone."""
    found = PlanChooser(TOWER, 1, 12, made_cluster(1), "fp32").choose(runners_up=2, drawn=3, seed=0)
    assert found[0].name.startswith("single") and all(plan.plan.workers == 1 for plan in found)
    assert not any(plan.kind in ("runner-up", "random") for plan in found)


def test_every_kind_of_plan_is_chosen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = chooser(monkeypatch, "one_weird_trick a")
    chosen = made.choose(runners_up=3, drawn=4, seed=0)
    kinds = [plan.kind for plan in chosen]
    counts = {kind: kinds.count(kind) for kind in kinds}
    assert counts == {"named": 8, "optimum": 1, "runner-up": 3, "random": 4}
    assert len({plan.plan for plan in chosen}) == len(chosen)
    names = [plan.name for plan in chosen]
    assert names[0] == "single" and "one_weird_trick a, the optimum" in names
    assert all(plan.held_out and plan.split.total_s == pytest.approx(plan.step_s) for plan in chosen)
    assert all(plan.step_s < 9.0 for plan in chosen)  # loading is not in it


def test_runners_up_are_the_best_of_those_one_change_away(monkeypatch: pytest.MonkeyPatch) -> None:
    made = chooser(monkeypatch, "one_weird_trick a")
    optimum = next(plan.plan for plan in made.choose(0, 0, 0) if plan.kind == "optimum")
    start = made.space.find(optimum)
    assert start is not None
    best = made.descend(start)
    times = [made.step_s(other) for other in made.neighbours(best)]
    assert min(times) >= made.step_s(best)
    changed = made.changed(best)[:4]
    assert all(name.split()[0] in made.space.decided for name, _ in changed)
    predicted = [made.predict("", "runner-up", plan).step_s for _, plan in changed]
    assert predicted == pytest.approx(sorted(times)[:4])


def test_an_optimum_outside_of_the_space_still_has_runners_up(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = chooser(monkeypatch, "model_parallel layers 2").choose(runners_up=2, drawn=0, seed=0)
    assert [plan.kind for plan in chosen].count("runner-up") == 2


def test_random_plans_are_the_same_for_a_seed_and_others_for_another_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def drawn(seed: int, batch_size: int) -> list[Plan]:
        chosen = chooser(monkeypatch, "data_parallel", batch_size).choose(0, 3, seed)
        return [plan.plan for plan in chosen if plan.kind == "random"]

    assert drawn(1, 12) == drawn(1, 12)
    assert drawn(1, 12) != drawn(2, 12) and drawn(1, 12) != drawn(1, 24)


def test_held_out_is_what_was_not_measured() -> None:
    """The table has only the parts of the whole batch on one worker."""
    timing, curve = Timing(1e-3, 1e-3, 1e-3, 3), {"fp32": Curve(((1, 1e-6),))}
    ops: dict[Any, Timing] = {}
    for op in TOWER:
        for name in (FORWARD, "backward", "parameters"):
            ops[OpKey.of(op, lower(TOWER, ALONE, 12).part(op.name, 0, 0)), name] = timing
    measured = Measured(Table({"fp32": ops}, curve, curve, curve))
    made = PlanChooser(TOWER, 2, 12, made_cluster(compute=measured), "fp32")
    assert not made.predict("", "named", ALONE).held_out
    assert made.predict("", "named", make_plan(TOWER, 2, {"conv1": Layout(on=(0, 1), n=2)})).held_out
    other = PlanChooser(TOWER, 2, 10, made_cluster(compute=measured), "fp32")
    assert other.predict("", "named", ALONE).held_out
    assert RecordingCompute(measured).precisions() == ("fp32",)


def test_a_row_has_the_median_and_the_mean_shares() -> None:
    turns = [
        Turn(1.0, StepSplit(0.5, 0.5, 0.0)),
        Turn(2.0, StepSplit(2.0, 0.0, 0.0)),
        Turn(4.0, StepSplit(2.0, 0.0, 2.0)),
    ]
    row = validated_plan(
        PredictedPlan("a", "named", ALONE, 12, False, 3.0, StepSplit(3.0, 0.0, 0.0), 1), turns, 2
    )
    assert (row.measured_s, row.first_quartile_s, row.third_quartile_s) == (2.0, 1.5, 3.0)
    assert dataclasses.astuple(row.measured) == pytest.approx((4 / 3, 1 / 3, 1 / 3))
    assert row.error == 0.5 and row.plan == str(ALONE)


def one_turn(plan: str) -> Turn:
    """Run a turn on one worker."""
    from parallel.plans import read_plan

    network, shape = build("tower")
    graph = trace(network, shape)
    batch = random_batch(6, shape, CLASSES, seed=0)
    with open_world(ClusterConfig(device="cpu")) as world:
        measurement = Measurement(network, batch, "fp32", ValidationOptions(), world)
        return measurement.turn(lower(graph, read_plan(plan, graph), 6))


def test_a_turn_splits_the_step_that_it_times(workers: Workers) -> None:
    """A worker without work is idle, and nothing is sent."""
    for turn in workers.run(2, one_turn, str(ALONE)):
        assert turn.step_s > 0 and turn.split.total_s == pytest.approx(turn.step_s)
        assert turn.split.exposed_s == 0.0 and turn.split.idle_s > 0


def gathers_under_way(plan: str) -> list[int]:
    """Run a turn on one worker; return how many gathers were left when the clock began and ended."""
    found: list[int] = []
    made: list[Runtime] = []

    class Seen(Runtime):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    def count(clock: Clock, original: Callable[[Clock], None]) -> None:
        if made:
            found.append(sum(held._gather is not None for held in made[0].parameters.buckets.values()))
        original(clock)

    reset, finished = Clock.reset, Clock.finished
    with (
        patch("parallel.validation.measure.Runtime", Seen),
        patch.object(Clock, "reset", lambda clock: count(clock, reset)),
        patch.object(Clock, "finished", lambda clock: count(clock, finished)),
    ):
        one_turn(plan)
    return found


def test_a_turn_begins_and_ends_with_gathered_weights(workers: Workers) -> None:
    """Otherwise the clock would see waits for messages that it has not seen begin."""
    everyone = make_plan(TOWER, 2, {"conv1": Layout(on=(0, 1), n=2)})
    assert workers.run(2, gathers_under_way, str(everyone)) == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["validate.blocks=0"], "validate.blocks=0 must be at least 1"),
        (["validate.runners_up=-1"], "validate.runners_up=-1 must be at least 0"),
        (["validate.batch_sizes=128,0"], "validate.batch_sizes=0 must be at least 1"),
        (["validate.batch_sizes=128,b"], "validate.batch_sizes[1]='b' must be a whole number"),
        (["validate.steps=two"], "validate.steps='two' must be a whole number"),
        (
            ["validate.odd=1"],
            "validate has unknown odd; its keys are batch_sizes, runners_up, random, blocks, steps",
        ),
        (["validate.odd"], "validate=odd must have a value"),
    ],
)
def test_bad_options_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        prefixed_options(ValidationOptions, "validate", arguments)
    assert str(caught.value).startswith(message)


def test_options_are_told_from_overrides() -> None:
    options, rest = prefixed_options(
        ValidationOptions, "validate", ["data=digits", "validate.batch_sizes=64,32", "validate.out=here"]
    )
    assert options == ValidationOptions(batch_sizes=(64, 32), out="here") and rest == ["data=digits"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cluster.file=nowhere.yaml"], "cluster.file=nowhere.yaml can't be read"),
        (["workers=2"], "workers=2 needs a world of 2, and this one has 1"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["validate", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_ranked(run)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and message in captured.err and captured.err.count("\n") == 1
