"""Plans, programs, simulated steps and optima equal those that scripts/golden.py recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts import golden


@pytest.mark.parametrize("only", ["plans/alexnet/2/", "simulator/alexnet/2/"])
def test_two_workers_are_as_recorded(only: str) -> None:
    assert golden.check(only) == []


@pytest.mark.slow
@pytest.mark.parametrize("section", golden.SECTIONS)
def test_everything_is_as_recorded(section: str) -> None:
    assert golden.check(f"{section}/") == []


def test_a_change_is_one_line(tmp_path: Path) -> None:
    path, prefix = "plans/alexnet/2/data_parallel/sent", "plans/alexnet/2/data_parallel/"
    recorded = json.loads(golden.FILE.read_text(encoding="utf-8"))
    altered = tmp_path / "altered.json"
    altered.write_text(golden.text_of({**recorded, path: f"1{recorded[path]}"}), encoding="utf-8")
    assert golden.check(prefix, altered) == [f"{path}: recorded 1{recorded[path]}, now {recorded[path]}"]


def test_entries_that_come_or_go_are_differences() -> None:
    assert golden.differences({"a": 1, "b": [1.0, 2.0]}, {"b": [1.0, 2.5], "c": 3}) == [
        "a: recorded 1, now nothing",
        "b: recorded 2.0, now 2.5",
        "c: recorded nothing, now 3",
    ]


def test_a_prefix_without_entries_is_refused() -> None:
    assert "matches no recorded entry" in golden.check("plan/")[0]
