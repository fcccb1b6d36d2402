"""Every number that somebody can write down is finite and within bounds: configuration, plans,
clusters, records.

The tests walk over the fields of the dataclasses, so a new number without a bound fails them.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from parallel.calibration.options import CalibrationOptions
from parallel.cli.choices import CHOICES
from parallel.cli.schema import FIXED
from parallel.cli.sweep import Torchrun
from parallel.cli.values import positive_seconds, whole_numbers
from parallel.cluster import Cluster, Link, Roofline
from parallel.cluster.table import Curve, Timing
from parallel.config import Config, DataConfig, TrainerConfig, require_plain
from parallel.config.checks import NESTING
from parallel.models.alexnet import AlexNetConfig
from parallel.plans import Layout, Plan
from parallel.results.records import Workload
from parallel.search.kept_plans import KeptPlan
from parallel.strategies import Single
from parallel.training.loop import learning_rate
from parallel.validation.options import ValidationOptions
from tests.support.made_clusters import made_cluster
from tests.support.made_records import WORKLOAD, made_epochs, made_record
from tests.support.made_validations import row, validation

NAMED = row(1.0, 1.0)
PLAN = Plan(workers=1, layouts={})
EXAMPLES: tuple[Any, ...] = (
    Config(AlexNetConfig(), DataConfig("digits"), Single()),
    *FIXED.values(),
    *(options for choices in CHOICES.values() for options in choices.values()),
    CalibrationOptions(),
    ValidationOptions(),
    Torchrun(),
    PLAN,
    Layout(on=(0,)),
    KeptPlan(PLAN, "w", "c", "exact", 0, 1.0, 1.0, "proof"),
    made_cluster(data_s_per_image=1.0),
    Link(0.0, ((1.0, 1.0),)),
    Roofline({"fp32": 1e9}, {}, 1e9, 0.0),
    Timing(1.0, 1.0, 1.0, 1),
    WORKLOAD,
    made_epochs([1.0])[0],
    made_record(),
    NAMED.predicted,
    NAMED,
    validation(NAMED),
)
ABSURD: dict[type, tuple[Any, ...]] = {
    int: (2**63, -(2**63), 10**300, 10**5000),
    float: (math.inf, -math.inf, math.nan, 1e300, -1e300, 10**300),
}
DIVERGED = ("train_loss", "val_loss")
"""Losses of a run that diverged must not lose its record."""


def numbers(cls: type) -> Iterator[tuple[str, type]]:
    """Yield the fields that hold a number or None, with the type of the number."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        declared = hints[field.name]
        union = typing.get_origin(declared) in (typing.Union, types.UnionType)
        for one in typing.get_args(declared) if union else [declared]:
            if one in ABSURD and field.name not in DIVERGED:
                yield field.name, one


CASES = [(example, name, kind) for example in EXAMPLES for name, kind in numbers(type(example))]


def test_the_walk_finds_the_fields() -> None:
    found = {(type(example), name) for example, name, _ in CASES}
    for expected in ((TrainerConfig, "gamma"), (Workload, "num_classes"), (Cluster, "step_overhead_s")):
        assert expected in found
    assert len(found) > 90


@pytest.mark.parametrize(
    ("example", "name", "kind"),
    CASES,
    ids=[f"{type(e).__name__}.{name}-{k.__name__}" for e, name, k in CASES],
)
def test_no_number_is_absurd(example: Any, name: str, kind: type) -> None:
    for value in ABSURD[kind]:
        with pytest.raises(ValueError, match=r"=\S+"):
            dataclasses.replace(example, **{name: value})


@pytest.mark.parametrize(
    "make",
    [
        lambda x: ValidationOptions(batch_sizes=(x,)),
        lambda x: Layout(on=(x,)),
        lambda x: Link(0.0, ((1.0, x),)),
        lambda x: Link(0.0, ((x, 1.0),)),
        lambda x: Roofline({"fp32": x}, {}, 1e9, 0.0),
        lambda x: Roofline({"fp32": 1.0}, {"Conv2d": x}, 1e9, 0.0),
        lambda x: made_cluster(core_contention=(1.0, x)),
        lambda x: Curve(((1, x),)),
        lambda x: Curve(((x, 1.0),)),
        lambda x: dataclasses.replace(FIXED["cluster"], hardware={"nodes": [x]}),
        lambda x: made_record(environment={"x": {"y": x}}),
        lambda x: made_record(config={"trainer": {"lr": x}}),
        lambda x: KeptPlan(PLAN, "w", "c", "exact", 0, 1.0, 1.0, "proof", {"found": x}),
    ],
)
def test_no_number_in_a_container_is_absurd(make: Callable[[float], Any]) -> None:
    for value in (math.inf, math.nan, -math.inf, 10**300):
        with pytest.raises(ValueError):
            make(value)


@pytest.mark.parametrize("word", ["inf", "nan", "1e308", "-1", "0", "1" * 5000, "1e1000", "²", ""])
def test_keys_of_commands_have_bounds(word: str) -> None:
    with pytest.raises(ValueError, match=r"^workers="):
        whole_numbers("workers", word, 100)
    with pytest.raises(ValueError, match=r"^epoch_s="):
        positive_seconds("epoch_s", word)


def test_a_schedule_cannot_overflow() -> None:
    with pytest.raises(
        ValueError, match=r"^trainer.gamma=10.0 multiplies trainer.lr by more than 1,000,000 in 99"
    ):
        TrainerConfig(epochs=100, schedule="step", step_epochs=1, gamma=10.0)
    last = TrainerConfig(epochs=7, schedule="step", step_epochs=1, gamma=10.0, lr=1e6)
    assert learning_rate(last, 6, 1.0) == pytest.approx(1e12)
    shrinking = TrainerConfig(epochs=10**6, schedule="step", step_epochs=1, gamma=1e-300)
    assert learning_rate(shrinking, 10**6, 1.0) == 0.0


def test_nesting_has_a_limit() -> None:
    value: Any = 1
    for _ in range(NESTING):
        value = [value]
    require_plain("x", value)
    with pytest.raises(ValueError, match=f"^x(.0)+ is nested more than {NESTING} levels deep"):
        require_plain("x", [value])
