"""Every epoch beside the published ones."""

from __future__ import annotations

import dataclasses
import json
import runpy
from pathlib import Path

import pytest

from parallel.compare import main
from parallel.results.appendix import Appendix, appendices, data_set
from parallel.results.comparison import compare
from parallel.results.record_files import write_record
from parallel.results.records import Record
from parallel.results.report.appendix import appendix_sections
from tests.support.html import Tags
from tests.support.made_records import WORKLOAD, made_record

ROOT = Path(__file__).parents[2]
DIGITS = dataclasses.replace(WORKLOAD, data="tiny_imagenet (digits)")


def published(strategy: str, seconds: tuple[float, ...], data: str = "tiny_imagenet") -> Record:
    workload = dataclasses.replace(
        WORKLOAD,
        **dict.fromkeys(
            ("variant", "num_classes", "image_size", "train_images", "batch_size", "precision"), None
        ),
        data=data,
    )
    made = made_record(strategy, seconds)
    return dataclasses.replace(
        made,
        workload=workload,
        started=None,
        finished=None,
        command="A thesis",
        environment={},
        device="cuda",
    )


def measured(strategy: str, seconds: tuple[float, ...]) -> Record:
    return made_record(strategy, seconds, workload=DIGITS)


def appendix_of(*records: Record) -> Appendix:
    (found,) = appendices(compare(records))
    return found


def test_the_epochs_of_a_strategy_stand_beside_the_published_ones() -> None:
    found = appendix_of(
        published("single", (4.0, 2.0, 6.0)),
        published("data_parallel", (8.0, 8.0, 8.0)),
        measured("single", (1.0, 2.0)),
        measured("searched", (0.5, 0.5)),
    )
    assert [(name, [kind for kind, _ in of]) for name, of in found.strategies.items()] == [
        ("single", ["published", "measured"]),
        ("data_parallel", ["published"]),
        ("searched", ["measured"]),
    ]
    columns, rows = found.table()
    assert columns == ["epoch", "published", "measured", "published", "measured"]
    values = {row[0]: [cell.rstrip("×") for cell in row[1:]] for row in rows}
    assert list(values) == ["1", "2", "3", "mean", "median", "speedup"]
    assert [float(cell) for cell in values["1"]] == [4.0, 1.0, 8.0, 0.5]
    assert values["3"][1] == values["3"][3] == "-" and float(values["3"][0]) == 6.0
    assert [float(cell) for cell in values["mean"]] == [4.0, 1.5, 8.0, 0.5]
    assert [float(cell) for cell in values["speedup"]] == [1.0, 1.0, 0.5, 3.0]
    assert found.notes[0] == "the images are not those of tiny_imagenet: tiny_imagenet (digits)"


def test_repeated_runs_are_averaged_by_epoch() -> None:
    """Epochs whose seconds are not the time of an epoch do not count."""
    other = measured("single", (3.0, 6.0, 9.0))
    continued = (*other.epochs[:2], dataclasses.replace(other.epochs[2], timed=False))
    _, rows = appendix_of(
        published("single", (4.0, 4.0, 4.0)),
        measured("single", (1.0, 2.0)),
        dataclasses.replace(other, epochs=continued),
    ).table()
    assert [row[0] for row in rows[:3]] == ["1", "2", "3"]
    assert [float(row[2]) for row in rows[:2]] == [2.0, 4.0] and rows[2][2] == "-"


def test_only_runs_of_the_same_data_and_model_have_an_appendix() -> None:
    theirs = published("single", (4.0,))
    ours = measured("single", (1.0,))
    other_model = dataclasses.replace(ours, workload=dataclasses.replace(DIGITS, model="vgg16"))
    other_data = dataclasses.replace(ours, workload=dataclasses.replace(DIGITS, data="dogs_vs_cats"))
    assert not appendices(compare([theirs]))
    assert not appendices(compare([ours]))
    assert not appendices(compare([theirs, other_model, other_data]))
    assert [data_set(of.measured) for of in appendices(compare([theirs, ours, other_data]))] == [
        "tiny_imagenet"
    ]


def test_imported_times_are_predicted_and_shown_beside_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = json.loads((ROOT / "scripts" / "published_epoch_times.json").read_text())
    times["experiments"] = [of for of in times["experiments"] if of["data"] == "tiny_imagenet"][:2]
    (tmp_path / "times.json").write_text(json.dumps(times))
    script = runpy.run_path(str(ROOT / "scripts" / "import_epoch_times.py"))
    assert script["main"]([str(tmp_path / "times.json"), str(tmp_path / "leon")]) == 0
    write_record(tmp_path / "ours", measured("single", (1.0, 2.0)))
    capsys.readouterr()
    assert main([str(tmp_path / "leon"), str(tmp_path / "ours"), "--report", str(tmp_path / "r.html")]) == 0
    said = capsys.readouterr().out
    assert "predicted below published: on two_p100" in said and "279.9" in said
    page = (tmp_path / "r.html").read_text()
    assert "Every epoch beside the published ones: alexnet" in page


def test_the_section_is_valid_and_harmless() -> None:
    theirs, ours = published("single", (4.0,)), measured("single", (1.0,))
    hostile = dataclasses.replace(theirs, command="<script>alert(1)</script>")
    (section,) = appendix_sections(compare([hostile, ours]))
    tags = Tags()
    tags.feed(section.body)
    assert not tags.open and not tags.requests and "script" not in tags.seen
    assert "&lt;script&gt;" in section.body
