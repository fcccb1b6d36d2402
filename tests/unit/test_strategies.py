"""The named strategies: what plans they make of AlexNet, and what they refuse."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from parallel import config
from parallel.config import ModelConfig, StrategyConfig
from parallel.graph import Graph, trace
from parallel.models import build_model
from parallel.plans import Layout
from parallel.program.lowering import lower
from parallel.strategies import STRATEGIES, build_plan
from parallel.strategies.model_parallel import balance, cost_of
from tests.support.small_models import graph_of


def alexnet(variant: str = "owt", size: int = 64) -> Graph:
    with torch.device("meta"):
        model = build_model(ModelConfig(variant=variant, image_size=size), 1000, seed=0)
    return trace(model, (3, size, size))


ALEXNETS = {variant: alexnet(variant) for variant in config.MODELS["alexnet"].variants}
OWT = ALEXNETS["owt"]


def refused(sentence: str) -> pytest.RaisesExc[ValueError]:
    return pytest.raises(ValueError, match=f"^{re.escape(sentence)}$")


def test_every_configured_strategy_but_ddp_is_in_the_table() -> None:
    assert {*STRATEGIES, "ddp"} == set(config.STRATEGIES)


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("variant", config.MODELS["alexnet"].variants)
@pytest.mark.parametrize("strategy", [
    StrategyConfig(name="data_parallel"),
    StrategyConfig(name="model_parallel"),
    StrategyConfig(name="model_parallel", scheme="tensor"),
    StrategyConfig(name="model_parallel", micro_batches=4),
    StrategyConfig(name="one_weird_trick"),
    StrategyConfig(name="one_weird_trick", scheme="a"),
    StrategyConfig(name="one_weird_trick", scheme="b", update="pass"),
], ids=lambda s: f"{s.name} {s.scheme or ''} {s.micro_batches}")
def test_every_strategy_has_a_program_for_every_variant(strategy: StrategyConfig, variant: str, workers: int) -> None:
    plan = build_plan(ALEXNETS[variant], workers, strategy)
    program = lower(ALEXNETS[variant], plan, 48)
    assert len(program.steps) == workers
    assert all(program.steps)


def test_single() -> None:
    plan = build_plan(OWT, 1, StrategyConfig(name="single"))
    assert {plan[op.name] for op in OWT} == {Layout(on=(0,))}
    with refused("workers=2 does not fit strategy=single, which runs on 1"):
        build_plan(OWT, 2, StrategyConfig(name="single"))


def test_data_parallel() -> None:
    plan = build_plan(OWT, 3, StrategyConfig(name="data_parallel"))
    assert {plan[op.name] for op in OWT} == {Layout(on=(0, 1, 2), n=3)}


def test_tensor_splits_every_op_but_the_loss_in_c() -> None:
    plan = build_plan(ALEXNETS["original"], 4, StrategyConfig(name="model_parallel", scheme="tensor"))
    layouts = {op.name: plan[op.name] for op in ALEXNETS["original"]}
    assert layouts.pop("loss") == Layout(on=(0, 1, 2, 3), n=4)
    assert set(layouts.values()) == {Layout(on=(0, 1, 2, 3), c=4)}


def test_layers_are_consecutive_and_cut_before_weighted_ops() -> None:
    plan = build_plan(OWT, 4, StrategyConfig(name="model_parallel", micro_batches=8, pipeline="fill_drain"))
    assert (plan.micro_batches, plan.pipeline) == (8, "fill_drain")
    on = [plan[op.name].on for op in OWT]
    assert on == sorted(on)
    assert set(on) == {(0,), (1,), (2,), (3,)}
    starts = [op for op, previous, now in zip(OWT.ops[1:], on, on[1:], strict=False) if previous != now]
    assert all(op.parameter_count for op in starts)


def test_layers_are_as_balanced_as_they_can_be() -> None:
    weighted = [op.name for op in OWT if op.parameter_count]
    costs = [cost_of(OWT, name) for name in weighted]
    plan = build_plan(OWT, 3, StrategyConfig(name="model_parallel"))
    loads = [sum(cost for name, cost in zip(weighted, costs, strict=True) if plan[name].on == (worker,))
             for worker in range(3)]
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

    assert worst(tuple(starts[1:])) == min(worst(cuts) for cuts in combinations(range(1, len(costs)), workers - 1))


def test_one_weird_trick() -> None:
    samples, features = Layout(on=(0, 1, 2, 3), n=4), Layout(on=(0, 1, 2, 3), c=4)
    for scheme, micro_batches in (("a", 1), ("b", 4), ("c", 4), (None, 1)):
        plan = build_plan(OWT, 4, StrategyConfig(name="one_weird_trick", scheme=scheme))
        assert (plan.scheme, plan.micro_batches, plan.update) == (scheme or "a", micro_batches, "step")
        first = OWT.names.index("fc6")
        assert {plan[name] for name in OWT.names[:first]} == {samples}
        assert {plan[name] for name in OWT.names[first:-1]} == {features}
        assert plan["loss"] == samples


def test_one_weird_trick_needs_linear_layers() -> None:
    convs = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (3, 8, 8))
    with refused("one_weird_trick needs a model with fully connected layers, and this one has none"):
        build_plan(convs, 2, StrategyConfig(name="one_weird_trick"))


@pytest.mark.parametrize(("workers", "strategy", "sentence"), [
    (9, StrategyConfig(name="model_parallel"),
     "workers=9 are more than the 8 layers with weights that scheme layers can place"),
    (2, StrategyConfig(name="model_parallel", scheme="rows"),
     "strategy.scheme=rows is not known; it must be one of layers, tensor"),
    (2, StrategyConfig(name="one_weird_trick", scheme="d"),
     "strategy.scheme=d is not known; it must be one of a, b, c"),
    (2, StrategyConfig(name="one_weird_trick", scheme="a", update="pass"),
     "update=pass needs passes, which scheme=a does not have"),
    (2, StrategyConfig(name="from_file"), "strategy.path=None must name the plan file of strategy=from_file"),
    (2, StrategyConfig(name="from_file", path="nowhere.yaml"), "strategy.path=nowhere.yaml is not a file"),
], ids=lambda value: value.name if isinstance(value, StrategyConfig) else "")
def test_what_a_strategy_refuses(workers: int, strategy: StrategyConfig, sentence: str) -> None:
    with refused(sentence):
        build_plan(OWT, workers, strategy)


def test_tensor_refuses_more_workers_than_a_layer_has_channels() -> None:
    with refused("ops.conv1.c=8 is more parts than the dim has positions, 7"):
        build_plan(graph_of("tower"), 8, StrategyConfig(name="model_parallel", scheme="tensor"))


def test_from_file(tmp_path: Path) -> None:
    written = build_plan(OWT, 4, StrategyConfig(name="one_weird_trick", scheme="b", update="pass"))
    path = tmp_path / "plan.yaml"
    path.write_text(str(written), encoding="utf-8")
    assert build_plan(OWT, 4, StrategyConfig(name="from_file", path=str(path))) == written
    with refused(f"{path}: workers=2 does not fit the plan, which is for 4"):
        build_plan(OWT, 2, StrategyConfig(name="from_file", path=str(path)))
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: ops=pool2 is not an op of the model"):
        build_plan(graph_of("towers"), 4, StrategyConfig(name="from_file", path=str(path)))
