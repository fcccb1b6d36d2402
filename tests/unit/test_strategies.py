"""The named strategies: their plans for AlexNet, and their errors."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from parallel.cli.choices import CHOICES
from parallel.config import Ddp, Searched, StrategyConfig
from parallel.graph import Graph, trace
from parallel.graph.configured import model_graph
from parallel.models.alexnet import VARIANTS, AlexNetConfig
from parallel.plans import Layout
from parallel.program.lowering import lower
from parallel.runtime.peers import PEERS
from parallel.strategies import (
    STRATEGIES,
    DataParallel,
    FromFile,
    ModelParallel,
    OneWeirdTrick,
    Single,
    build_plan,
)
from parallel.strategies.model_parallel import balance, cost_of
from tests.support.refusals import refused
from tests.support.small_models import graph_of


def alexnet(variant: str = "owt", size: int = 64) -> Graph:
    return model_graph(AlexNetConfig(variant=variant, image_size=size), 1000)


ALEXNETS = {variant: alexnet(variant) for variant in VARIANTS}
OWT = ALEXNETS["owt"]


def test_every_strategy_is_a_choice_of_its_own_name() -> None:
    assert {*STRATEGIES, "searched", *PEERS} == {*CHOICES["strategy"]}
    assert all(options.name == name for choices in CHOICES.values() for name, options in choices.items())


def test_every_strategy_without_a_plan_is_a_peer() -> None:
    assert {
        name
        for name, options in CHOICES["strategy"].items()
        if isinstance(options, StrategyConfig) and not options.makes_plan
    } == {*PEERS}


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "strategy",
    [
        DataParallel(),
        ModelParallel(),
        ModelParallel(scheme="tensor"),
        ModelParallel(micro_batches=4),
        OneWeirdTrick(),
        OneWeirdTrick(scheme="b", update="pass"),
    ],
    ids=lambda s: s.full_label(None),
)
def test_every_strategy_has_a_program_for_every_variant(
    strategy: StrategyConfig, variant: str, workers: int
) -> None:
    plan = build_plan(ALEXNETS[variant], workers, strategy)
    program = lower(ALEXNETS[variant], plan, 48)
    assert len(program.steps) == workers
    assert all(program.steps)


def test_single() -> None:
    plan = build_plan(OWT, 1, Single())
    assert {plan[op.name] for op in OWT} == {Layout(on=(0,))}
    with refused("workers=2 must be 1 for strategy=single"):
        build_plan(OWT, 2, Single())


def test_data_parallel() -> None:
    plan = build_plan(OWT, 3, DataParallel())
    assert {plan[op.name] for op in OWT} == {Layout(on=(0, 1, 2), n=3)}


def test_tensor_splits_every_op_but_the_loss_in_c() -> None:
    plan = build_plan(ALEXNETS["original"], 4, ModelParallel(scheme="tensor"))
    layouts = {op.name: plan[op.name] for op in ALEXNETS["original"]}
    assert layouts.pop("loss") == Layout(on=(0, 1, 2, 3), n=4)
    assert set(layouts.values()) == {Layout(on=(0, 1, 2, 3), c=4)}


def test_layers_are_consecutive_and_cut_before_weighted_ops() -> None:
    plan = build_plan(OWT, 4, ModelParallel(micro_batches=8, pipeline="fill_drain"))
    assert (plan.micro_batches, plan.pipeline) == (8, "fill_drain")
    on = [plan[op.name].on for op in OWT]
    assert on == sorted(on)
    assert set(on) == {(0,), (1,), (2,), (3,)}
    starts = [op for op, previous, now in zip(OWT.ops[1:], on, on[1:], strict=False) if previous != now]
    assert all(op.parameter_count for op in starts)


def test_layers_are_as_balanced_as_they_can_be() -> None:
    weighted = [op.name for op in OWT if op.parameter_count]
    costs = [cost_of(OWT, name) for name in weighted]
    plan = build_plan(OWT, 3, ModelParallel())
    loads = [
        sum(cost for name, cost in zip(weighted, costs, strict=True) if plan[name].on == (worker,))
        for worker in range(3)
    ]
    best = min(max(sum(costs[:i]), sum(costs[i:j]), sum(costs[j:])) for i, j in combinations(range(1, 8), 2))
    assert max(loads) == best


def test_cost_counts_forward_backward_and_update() -> None:
    fc8 = 4096 * 1000
    assert cost_of(OWT, "fc8", samples=10) == 3 * 10 * fc8 + 40 * (fc8 + 1000)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.data())
def test_balance_is_the_best_of_all_cuts(costs: list[int], data: st.DataObject) -> None:
    workers = data.draw(st.integers(1, len(costs)))
    starts = balance(costs, workers)
    assert len(starts) == workers
    assert starts[0] == 0
    assert starts == sorted(set(starts))

    def worst(cuts: tuple[int, ...]) -> int:
        edges = [0, *cuts, len(costs)]
        return max(sum(costs[a:b]) for a, b in zip(edges, edges[1:], strict=False))

    assert worst(tuple(starts[1:])) == min(
        worst(cuts) for cuts in combinations(range(1, len(costs)), workers - 1)
    )


def test_one_weird_trick() -> None:
    samples, features = Layout(on=(0, 1, 2, 3), n=4), Layout(on=(0, 1, 2, 3), c=4)
    for scheme, micro_batches in (("a", 1), ("b", 4), ("c", 4)):
        plan = build_plan(OWT, 4, OneWeirdTrick(scheme=scheme))
        assert (plan.scheme, plan.micro_batches, plan.update) == (scheme, micro_batches, "step")
        first = OWT.names.index("fc6")
        assert {plan[name] for name in OWT.names[:first]} == {samples}
        assert {plan[name] for name in OWT.names[first:-1]} == {features}
        assert plan["loss"] == samples


def test_one_weird_trick_needs_linear_layers() -> None:
    convs = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (3, 8, 8))
    with refused("one_weird_trick needs a model with fully connected layers, and this one has none"):
        build_plan(convs, 2, OneWeirdTrick())


@pytest.mark.parametrize(
    ("workers", "strategy", "sentence"),
    [
        (
            9,
            ModelParallel(),
            "workers=9 are more than the 8 layers with weights that scheme layers can place",
        ),
        (
            2,
            OneWeirdTrick(scheme="a", update="pass"),
            "update=pass needs passes, which scheme=a does not have",
        ),
        (2, FromFile(), "strategy.path=None must name the plan file of strategy=from_file"),
        (2, FromFile(path="nowhere.yaml"), "strategy.path=nowhere.yaml is not a file"),
    ],
    ids=lambda value: value.name if isinstance(value, StrategyConfig) else "",
)
def test_what_a_strategy_refuses(workers: int, strategy: StrategyConfig, sentence: str) -> None:
    with refused(sentence):
        build_plan(OWT, workers, strategy)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: ModelParallel(scheme="rows"),
            "strategy.scheme=rows is not known; it must be one of layers, tensor",
        ),
        (
            lambda: ModelParallel(pipeline="gpipe"),
            "strategy.pipeline=gpipe is not known; it must be one of fill_drain, 1f1b",
        ),
        (
            lambda: ModelParallel(micro_batches=0),
            "strategy.micro_batches=0 must be at least 1 and at most 4,096",
        ),
        (lambda: OneWeirdTrick(scheme="d"), "strategy.scheme=d is not known; it must be one of a, b, c"),
        (
            lambda: OneWeirdTrick(update="epoch"),
            "strategy.update=epoch is not known; it must be one of step, pass",
        ),
        (lambda: Ddp(bucket_mb=0.0), "strategy.bucket_mb=0.0 must be positive and at most 1,000,000"),
        (
            lambda: Searched(method="guess"),
            "strategy.method=guess is not known; it must be one of exact, mcmc, exhaustive",
        ),
        (lambda: Searched(candidates=0), "strategy.candidates=0 must be at least 1 and at most 1,000,000"),
    ],
)
def test_options_are_checked_at_construction(make: Callable[[], StrategyConfig], sentence: str) -> None:
    with refused(sentence):
        make()


@pytest.mark.parametrize(
    ("options", "plan", "label"),
    [
        (Single(), "5f0c", "single"),
        (ModelParallel(micro_batches=4), None, "model_parallel layers micro_batches=4"),
        (OneWeirdTrick(scheme="b", update="pass"), None, "one_weird_trick b update=pass"),
        (FromFile(path="plan.yaml"), "5f0c", "from_file plan 5f0c"),
    ],
)
def test_labels_tell_runs_apart(options: StrategyConfig, plan: str | None, label: str) -> None:
    assert options.full_label(plan) == label


def test_tensor_refuses_more_workers_than_a_layer_has_channels() -> None:
    with refused("ops.conv1.c=8 is more parts than the dim has positions, 7"):
        build_plan(graph_of("tower"), 8, ModelParallel(scheme="tensor"))


def test_from_file(tmp_path: Path) -> None:
    written = build_plan(OWT, 4, OneWeirdTrick(scheme="b", update="pass"))
    path = tmp_path / "plan.yaml"
    path.write_text(str(written), encoding="utf-8")
    assert build_plan(OWT, 4, FromFile(path=str(path))) == written
    with refused(f"{path}: workers=2 does not fit the plan, which is for 4"):
        build_plan(OWT, 2, FromFile(path=str(path)))
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: ops=pool2 is not an op of the model"):
        build_plan(graph_of("towers"), 4, FromFile(path=str(path)))
