"""A run's prediction of itself, in its record, and its step as timelines, in step.json."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from parallel.results.comparison import Comparison, compare
from parallel.results.comparison_export import as_csv, as_json, comparison_values
from parallel.results.comparison_table import RESULTS, cells
from parallel.results.notes import notes
from parallel.results.order import sorted_by
from parallel.results.predicted import Predicted
from parallel.results.prediction_check import check_prediction
from parallel.results.record_files import RECORD, read_record, write_record
from parallel.results.run_summary import run_summary
from parallel.results.step_timeline import FILE, Span, StepTimelines, read, write
from tests.support.made_records import made_record

PREDICTED = Predicted(
    epoch_s=4.6,
    step_s=0.21,
    compute_s=4.0,
    communication_s=0.4,
    idle_s=0.1,
    data_wait_s=0.1,
    cluster="two cores",
    calibrated=True,
    error=0.05,
)
SPAN = Span(worker=1, start_s=0.25, end_s=0.5, kind="communication", name="sum fc6", hidden=True)


def test_a_prediction_is_read_as_written_or_unknown(tmp_path: Path) -> None:
    write_record(tmp_path / "run", made_record("data_parallel", predicted=PREDICTED))
    assert read_record(tmp_path / "run").predicted == PREDICTED
    file = tmp_path / "run" / RECORD
    values = json.loads(file.read_text())
    del values["predicted"]  # as written before there was the field
    file.write_text(json.dumps(values))
    assert read_record(file).predicted is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epoch_s", 0.0, "epoch_s=0.0 must be a time above 0 s"),
        ("step_s", float("nan"), "step_s=nan must be a time above 0 s"),
        ("idle_s", -1.0, "idle_s=-1.0 must be at least 0 and at most"),
        ("error", float("inf"), "error=inf must be at least 0 and at most 100"),
    ],
)
def test_an_impossible_prediction_is_refused(name: str, value: float, message: str) -> None:
    changes: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PREDICTED, **changes)


def test_timelines_are_read_as_written(tmp_path: Path) -> None:
    timelines = StepTimelines((SPAN,), (dataclasses.replace(SPAN, kind="idle", hidden=False),))
    write(tmp_path / FILE, timelines)
    assert read(tmp_path / FILE) == timelines
    write(tmp_path / FILE, StepTimelines())
    assert read(tmp_path / FILE) == StepTimelines()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"end_s": 0.2}, "end_s=0.2 must be at least 0.25"),
        ({"kind": "lunch"}, "kind=lunch is not known; it must be one of compute, communication, idle, data"),
        ({"kind": "data"}, "hidden=True must be false for kind=data"),
        ({"worker": "one"}, "worker='one' must be a whole number"),
    ],
)
def test_an_altered_file_is_refused_with_its_name(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    file = tmp_path / FILE
    write(file, StepTimelines((SPAN,)))
    values = json.loads(file.read_text())
    values["measured"][0] |= changes
    file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message) as error:
        read(file)
    assert str(error.value).startswith(f"{file}: measured[0]")


def test_another_format_and_a_truncated_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / FILE
    file.write_text('{"format": 2, "measured": [], "predicted": []}')
    with pytest.raises(ValueError, match="format=2 must be 1 to be read here"):
        read(file)
    file.write_text('{"format": 1, "measured": [')
    with pytest.raises(ValueError, match=FILE):
        read(file)


def compared(*predicted: Predicted | None, seconds: float = 5.0) -> Comparison:
    """Return the comparison of pooled runs of data parallelism with these predictions."""
    runs = [
        made_record("data_parallel", (seconds,) * 3, name=f"run{i}", predicted=of)
        for i, of in enumerate(predicted)
    ]
    (found,) = compare([made_record(), *runs])
    return found


def ratio_cells(comparison: Comparison) -> list[list[str]]:
    columns, rows = cells(comparison.results, RESULTS)
    places = [columns.index(name) for name in ("predicted", "measured/predicted")]
    return [[row[place] for place in places] for row in rows]


@pytest.mark.parametrize(
    ("changes", "seconds", "cell"),
    [
        ({"epoch_s": 4.9}, 5.0, "1.02"),
        ({"epoch_s": 4.0}, 5.0, "1.25 !"),
        ({"epoch_s": 4.0, "error": 0.3}, 5.0, "1.25"),
        ({"epoch_s": 4.5, "error": None}, 5.0, "1.11"),
        ({"epoch_s": 4.0, "error": None}, 5.0, "1.25 !"),
        ({"epoch_s": 4.0, "calibrated": False}, 5.0, "1.25 ~"),
        ({"epoch_s": 10.0}, 5.0, "0.50 !"),
    ],
)
def test_a_row_outside_the_interval_is_marked(changes: dict[str, Any], seconds: float, cell: str) -> None:
    found = compared(dataclasses.replace(PREDICTED, **changes), seconds=seconds)
    assert ratio_cells(found)[0] == ["-", "-"]
    assert ratio_cells(found)[1] == [f"{changes['epoch_s']:.2f}", cell]


def test_pooled_runs_have_the_median_of_their_predictions() -> None:
    runs = [dataclasses.replace(PREDICTED, epoch_s=s, error=e) for s, e in ((4, 0.1), (5, 0.3), (9, 0.2))]
    check = check_prediction([made_record(predicted=of) for of in (*runs, None)], 6.0)
    assert check is not None and (check.predicted_s, check.error, check.ratio) == (5, 0.3, 1.2)
    assert check_prediction([made_record()], 6.0) is None


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("compute_s", "compute differs most: 3.50 s an epoch instead of 1.00"),
        ("communication_s", "communication differs most: 0.7500 s an epoch instead of 9.00"),
        ("idle_s", "idle time differs most: 0.5000 s an epoch instead of 9.00"),
        ("data_wait_s", "the wait for data differs most: 0.2500 s an epoch instead of 9.00"),
    ],
)
def test_the_part_that_differs_most_is_named(part: str, words: str) -> None:
    near = {"compute_s": 3.5, "communication_s": 0.75, "idle_s": 0.5, "data_wait_s": 0.25}
    near |= {part: 1.0 if part == "compute_s" else 9.0}
    found = compared(dataclasses.replace(PREDICTED, epoch_s=4.0, **near))
    (note,) = [note for note in notes(found) if note.startswith("!")]
    assert note == (
        f"! data_parallel takes 1.25 × its predicted time, 5.00 s instead of 4.00: outside 1 ± 5 %, that of "
        f"its validation; {words}"
    )


def test_predictions_without_a_calibration_are_named_and_not_judged() -> None:
    found = compared(dataclasses.replace(PREDICTED, epoch_s=1.0, calibrated=False))
    said = [note for note in notes(found) if note[0] in "!~"]
    assert said == ["~ Predicted without a calibration for these runs: data_parallel"]


def test_exports_and_the_summary_of_a_run_have_both_times() -> None:
    found = compared(dataclasses.replace(PREDICTED, epoch_s=4.0))
    rows = json.loads(as_json(comparison_values([found])))[0]["rows"]
    names = ("predicted_s", "measured_over_predicted", "outside_prediction")
    assert [[row[name] for name in names] for row in rows] == [[None, None, None], [4.0, 1.25, True]]
    assert (
        "predicted_s,measured_over_predicted,outside_prediction"
        in as_csv(comparison_values([found])).splitlines()[0]
    )
    summary = run_summary(found.results[1].records[0], None)
    assert (summary["epoch_seconds/predicted"], summary["measured/predicted"]) == (4.0, 1.25)
    assert "epoch_seconds/predicted" not in run_summary(made_record(), None)


def test_rows_are_sorted_by_the_numbers_of_predictions_and_not_by_their_marks() -> None:
    found = compare(
        [
            made_record(),
            *(
                made_record(name, predicted=dataclasses.replace(PREDICTED, epoch_s=epoch_s))
                for name, epoch_s in (("data_parallel", 110.0), ("one_weird_trick", 5.5), ("ddp", 11.0))
            ),
        ]
    )
    for column, order in (
        ("predicted", ["one_weird_trick", "ddp", "data_parallel", "single"]),
        ("measured/predicted", ["data_parallel", "ddp", "one_weird_trick", "single"]),
    ):
        (comparison,) = sorted_by(found, column)
        assert [result.key.strategy for result in comparison.results] == order
