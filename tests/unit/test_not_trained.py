"""Runs that have not learned anything are marked, as are times that others disturbed."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from parallel.results.comparison import compare
from parallel.results.comparison_export import as_json, comparison_values
from parallel.results.comparison_table import RESULTS, WHO, cells
from parallel.results.disturbance import not_trained
from parallel.results.load import Load
from parallel.results.notes import notes
from parallel.results.records import Epoch, Record
from tests.support.made_records import WORKLOAD, made_record


def ended(**values: Any) -> Record:
    return made_record("ddp", epochs=(Epoch(epoch=1, seconds=5.0, val_top1=0.1, **values),))


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (ended(train_loss=2.0), ""),
        (ended(train_loss=3.0, val_loss=2.29), ""),
        (ended(train_loss=0.5, val_loss=4.0), ""),  # it has learned its training images by heart
        (ended(), ""),
        (ended(train_loss=2.31), "did not learn: its loss of 2.31 is not below chance, ln(10) = 2.30"),
        (ended(train_loss=float("nan")), "diverged: its loss is nan"),
        (
            dataclasses.replace(ended(train_loss=2.0), weights_changed=False),
            "did not train: its weights are those of the start",
        ),
        (dataclasses.replace(ended(train_loss=2.0), weights_changed=True), ""),
        (
            dataclasses.replace(
                ended(train_loss=9.0), workload=dataclasses.replace(WORKLOAD, num_classes=None)
            ),
            "",
        ),
    ],
)
def test_why_a_run_has_not_trained(record: Record, said: str) -> None:
    assert not_trained(record) == said


def test_it_is_said_in_table_json_and_notes() -> None:
    comparisons = compare([made_record(), ended(train_loss=2.31)])
    names, lines = cells(comparisons[0].results, WHO + RESULTS)
    assert [line[names.index("top-1")] for line in lines] == ["83.3 %", "10.0 %✗"]
    assert notes(comparisons[0])[0].startswith("Not trained: ddp (ddp) did not learn")
    assert [
        bool(row["not_trained"]) for row in json.loads(as_json(comparison_values(comparisons)))[0]["rows"]
    ] == [False, True]


def test_noise_is_said_beside_the_number() -> None:
    busy = made_record("ddp", (5.0, 5.0), load=Load(processes=1.0))
    faster = made_record("data_parallel", (4.0, 4.0))
    crowded = made_record("one_weird_trick", (4.0, 4.0), workers=3)
    comparisons = compare([made_record("single", (10.0, 10.0)), busy, faster, crowded])
    names, lines = cells(comparisons[0].results, WHO + RESULTS)
    shown = {line[0]: (line[names.index("speedup")], line[names.index("efficiency")]) for line in lines}
    assert shown == {
        "single": ("1.00×", "100 %"),
        "ddp": ("2.00×!", "100 %"),
        "data_parallel": ("2.50×", "125 %!"),
        "one_weird_trick": ("2.50×!", "83 %"),
    }
    said = notes(comparisons[0])
    assert "Noisy: ddp (ddp) ran while other processes used 1.0 of its cores" in said
    assert any(note.startswith("data_parallel has an efficiency of 125 %") for note in said)
    assert any(note.startswith("one_weird_trick a has 3 threads on 2 cores") for note in said)
