"""Dataclasses from plain values: nothing is coerced, and each error names path, value and rule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from parallel.config.typed import structure, structure_text


@dataclass(frozen=True)
class Inner:
    name: str
    size: int | None = None

    def __post_init__(self) -> None:
        if self.size == 0:
            raise ValueError("size=0 must be at least 1")


@dataclass(frozen=True)
class Outer:
    rate: float
    inner: Inner
    items: tuple[Inner, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    anything: dict[str, Any] = field(default_factory=dict)
    shared: bool = False
    other: Inner | None = None


@dataclass(frozen=True)
class Texts:
    count: int
    seconds: float
    loss: float | None = None
    sizes: tuple[int, ...] = (1, 2)
    fresh: bool = False
    out: str = "here"


PLAIN = {"rate": 1, "inner": {"name": "a"}}


def test_values_become_dataclasses() -> None:
    values = {
        **PLAIN,
        "items": [{"name": "b", "size": 2}],
        "counts": {"x": 3},
        "anything": {"y": [1, "z"]},
        "shared": True,
        "other": {"name": "c"},
    }
    assert structure(Outer, values) == Outer(
        1.0, Inner("a"), (Inner("b", 2),), {"x": 3}, {"y": [1, "z"]}, True, Inner("c")
    )
    assert type(structure(Outer, PLAIN).rate) is float
    assert structure(Outer, {**PLAIN, "inner": Inner("kept", 5)}).inner == Inner("kept", 5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rate": "1"}, "rate='1' must be a number"),
        ({"rate": True}, "rate=True must be a number"),
        ({"rate": None}, "rate=None must be a number"),
        ({"shared": 1}, "shared=1 must be true or false"),
        ({"inner": 3}, "inner=3 must be a mapping"),
        ({"inner": {"name": 3}}, "inner.name=3 must be text"),
        ({"inner": {"name": "a", "size": 1.5}}, "inner.size=1.5 must be a whole number or null"),
        ({"inner": {"name": "a", "size": 0}}, "inner.size=0 must be at least 1"),
        ({"inner": {}}, "inner lacks name"),
        ({"inner": {"name": "a", "sice": 1}}, "inner has unknown sice; its keys are name, size"),
        ({"inner": {"sice": 1}}, "inner lacks name and has unknown sice; its keys are name, size"),
        ({"items": "ab"}, "items='ab' must be a list"),
        ({"items": [{"name": "a"}, 4]}, "items[1]=4 must be a mapping"),
        (
            {"items": [{"name": "a"}, {"name": "b", "size": "c"}]},
            "items[1].size='c' must be a whole number or null",
        ),
        ({"counts": {"x": "y"}}, "counts.x='y' must be a whole number"),
        ({"counts": [1]}, "counts=[1] must be a mapping"),
        ({"other": 1}, "other=1 must be a mapping or null"),
        ({"other": {"nam": "c"}}, "other lacks name and has unknown nam; its keys are name, size"),
        (
            {"odd": 1},
            "outer has unknown odd; its keys are rate, inner, items, counts, anything, shared, other",
        ),
        ({"rate": "9" * 9999}, f"rate='{'9' * 999}… must be a number"),
        ({"rate": 10**400}, f"rate=1{'0' * 400} must be a number"),
    ],
)
def test_refusals_name_path_value_and_rule(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        structure(Outer, {**PLAIN, **change})
    assert str(caught.value) == said


def test_path_begins_with_the_given_name() -> None:
    with pytest.raises(ValueError, match=r"^plan\.ops\.conv1='x' must be a whole number$"):
        structure(dict[str, dict[str, int]], {"ops": {"conv1": "x"}}, "plan")
    with pytest.raises(ValueError, match=r"^plan=3 must be a mapping$"):
        structure(Inner, 3, "plan")


def test_texts_become_dataclasses() -> None:
    texts = {"count": "3", "seconds": "2.5", "loss": ""}
    assert structure_text(Texts, texts) == Texts(3, 2.5, None)
    assert structure_text(
        Texts, {**texts, "loss": "0.5", "sizes": "128,96", "fresh": "true", "out": "there"}
    ) == Texts(3, 2.5, 0.5, (128, 96), True, "there")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seconds": ""}, "seconds='' must be a number"),
        ({"count": "2.5"}, "count='2.5' must be a whole number"),
        ({"loss": "low"}, "loss='low' must be a number or null"),
        ({"count": "1_0"}, "count='1_0' must be a whole number"),
        ({"count": "٣"}, "count='٣' must be a whole number"),
        ({"seconds": " 1"}, "seconds=' 1' must be a number"),
        ({"seconds": "infinity"}, "seconds='infinity' must be a number"),
        ({"loss": "0" * 1001}, f"loss='{'0' * 999}… must be a number or null"),
        ({"sizes": "1,b"}, "sizes[1]='b' must be a whole number"),
        ({"fresh": "1"}, "fresh='1' must be true or false"),
        ({"odd": "1"}, "calibrate has unknown odd; its keys are count, seconds, loss, sizes, fresh, out"),
    ],
)
def test_texts_are_refused_with_the_given_name(change: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        structure_text(Texts, {"count": "3", "seconds": "2.5", **change}, "calibrate")
    assert str(caught.value).removeprefix("calibrate.") == said
