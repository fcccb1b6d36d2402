"""Strong and weak scaling: which results belong together, their baselines, tables and plots."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from markupsafe import Markup

from parallel.compare import main
from parallel.results.comparison import compare
from parallel.results.formatting import duration
from parallel.results.load import Load
from parallel.results.predicted import Predicted
from parallel.results.record_files import write_record
from parallel.results.records import Epoch, Record
from parallel.results.report.scaling import scaling_sections
from parallel.results.scaling import batch_scaling, strong_scaling, weak_scaling
from parallel.results.scaling_table import krizhevsky_table, scaling_notes, scaling_table
from tests.support.made_records import WORKLOAD, made_epochs, made_hosts, made_record

IMAGES = 1000


def run(
    strategy: str,
    workers: int,
    batch: int,
    seconds: float,
    *,
    predicted_s: float | None = None,
    epochs: int = 3,
    **more: Any,
) -> Record:
    """Return a run with epochs of about these seconds, which drop an incomplete last batch."""
    trained = IMAGES // batch * batch
    made = tuple(
        dataclasses.replace(epoch, images_per_second=trained / epoch.seconds)
        for epoch in made_epochs([seconds * (1, 0.99, 1.01)[i % 3] for i in range(epochs)])
    )
    predicted = predicted_s and Predicted(
        epoch_s=predicted_s,
        step_s=predicted_s / (IMAGES // batch),
        compute_s=predicted_s,
        communication_s=0,
        idle_s=0,
        data_wait_s=0,
        cluster="local",
        calibrated=True,
    )
    return made_record(
        strategy,
        workers=workers,
        workload=dataclasses.replace(WORKLOAD, batch_size=batch, train_images=IMAGES),
        epochs=made,
        predicted=predicted or None,
        plan=f"{strategy} on {workers}",
        trainer={"batch_size": batch},
        **more,
    )


STRONG = (
    run("single", 1, 100, 8.0, predicted_s=8.4),
    run("data_parallel", 2, 100, 5.0, predicted_s=4.2),
    run("data_parallel", 4, 100, 4.0, predicted_s=2.8),
)
WEAK = (
    run("single", 1, 64, 8.0, predicted_s=8.4),
    run("one_weird_trick", 2, 128, 4.2, predicted_s=4.2, scheme="a"),
    run("one_weird_trick", 4, 256, 2.0, scheme="a"),
    run("one_weird_trick", 2, 128, 4.8, scheme="b", options={"update": "pass"}),
)


def test_strong_scaling_has_the_speedups_of_the_comparison() -> None:
    comparisons = compare(STRONG)
    (scaling,) = strong_scaling(comparisons)
    assert (scaling.kind, scaling.batch, scaling.workload.batch_size) == ("strong", 100, None)
    assert [(point.workers, point.efficiency) for point in scaling.points] == [(1, 1.0), (2, 0.8), (4, 0.5)]
    assert [p.speedup for p in scaling.points] == [r.speedup for r in comparisons[0].results]
    assert [p.predicted_speedup for p in scaling.points] == pytest.approx([1.0, 2.0, 3.0])
    assert [point.error for point in scaling.points] == pytest.approx([8 / 8.4, 5 / 4.2, 4 / 2.8])
    (line,) = scaling.lines
    assert [point.workers for point in line.points] == [1, 2, 4], "it starts at the baseline"


def test_one_number_of_workers_is_no_scaling() -> None:
    comparisons = compare(STRONG[:2])
    assert strong_scaling(comparisons) == weak_scaling(comparisons) == batch_scaling(comparisons) == []
    assert scaling_sections(comparisons) == []


def test_weak_scaling_compares_images_per_second_with_one_worker_and_its_own_batch() -> None:
    (scaling,) = weak_scaling(compare(WEAK))
    assert (scaling.kind, scaling.batch) == ("weak", 64)
    found = {(p.result.scheme, p.workers): p for p in scaling.points}
    # Batches of 64, 128 and 256 train 960, 896 and 768 of the 1,000 images of an epoch.
    speedups = {key: p.speedup.ratio for key, p in found.items() if p.speedup}
    two, four = (896 / 4.2) / (960 / 8), (768 / 2) / (960 / 8)
    expected = {("", 1): 1.0, ("a", 2): two, ("a", 4): four, ("b update=pass", 2): (896 / 4.8) / (960 / 8)}
    assert speedups == pytest.approx(expected)
    assert found["a", 4].efficiency == pytest.approx(four / 4)
    assert found["a", 2].predicted_speedup == pytest.approx((128 / (4.2 / 7)) / (64 / (8.4 / 15)))
    assert found["a", 4].predicted_speedup is None and found["a", 4].error is None
    interval = found["a", 2].speedup
    assert interval is not None and interval.low is None, "three epochs say little about their spread"


def test_intervals_of_weak_scaling_are_those_of_epochs_runs_or_rounds() -> None:
    one, two = run("single", 1, 64, 8.0, epochs=10), run("data_parallel", 2, 128, 4.2, epochs=10)
    (scaling,) = weak_scaling(compare([one, two]))
    assert scaling.points[1].speedup and scaling.points[1].speedup.covers == "within-run"
    columns, rows = scaling_table(scaling)
    assert rows[1][columns.index("95 %")].endswith("†")
    rounds = [
        dataclasses.replace(
            record,
            started=f"2026-01-02T03:{minute:02d}:00Z",
            finished=f"2026-01-02T03:{minute:02d}:50Z",
            config={**record.config, "repeat": 1 + minute // 2},
        )
        for minute, record in enumerate([one, two, two, one])
    ]
    (scaling,) = weak_scaling(compare(rounds))
    paired = scaling.points[1].speedup
    assert paired and paired.covers == "rounds" and paired.ratio == pytest.approx((896 / 4.2) / (960 / 8))


def test_points_have_the_marks_and_notes_of_the_comparison() -> None:
    cores = tuple(dataclasses.replace(host, cores=2) for host in made_hosts(4))
    noisy = Load(processes=1.9, steal=0.2, clock_mhz=2000)
    doubtful = [
        run("single", 1, 64, 8.0),
        run("data_parallel", 2, 128, 5.0, load=noisy),
        run("one_weird_trick", 2, 128, 3.0, weights_changed=False, scheme="a"),
        run("data_parallel", 4, 256, 3.0, hosts=cores),
    ]
    comparisons = compare(doubtful)
    (scaling,) = weak_scaling(comparisons)
    columns, rows = scaling_table(scaling)
    by = {(row[0], row[columns.index("workers")]): dict(zip(columns, row, strict=True)) for row in rows}
    assert by["data_parallel", "2"]["speedup"].endswith("×!")
    assert by["data_parallel", "4"]["speedup"].endswith("×!")
    assert by["one_weird_trick", "2"]["top-1"].endswith("✗")
    assert by["one_weird_trick", "2"]["efficiency"].endswith("%!")
    assert not any(set("!✗†") & set("".join(row)) for row in rows[:1])
    notes = "\n".join(scaling_notes(scaling))
    assert "Noisy: data_parallel on 2 workers (data_parallel) ran while" in notes
    assert "Not trained: one_weird_trick a on 2 workers (one_weird_trick) did not train" in notes
    assert "data_parallel on 4 workers has 4 threads on 2 cores" in notes
    assert "one_weird_trick a on 2 workers has an efficiency of 124 %" in notes
    assert "No interval for data_parallel on 2 workers, data_parallel on 4 workers" in notes
    (section,) = scaling_sections(comparisons)
    assert section.body.count('class="flag" title=') == 3 and "disturbed or doubtful" in section.body
    assert "!<abbr" not in section.body, "one mark, not two"
    assert krizhevsky_table(scaling)[1][1][4].endswith("✗")


def test_pooled_runs_are_predicted_only_if_each_of_them_is() -> None:
    repeated = run("data_parallel", 2, 100, 5.2, predicted_s=4.6)
    found = {p.workers: p for p in strong_scaling(compare([*STRONG, repeated]))[0].points}
    assert found[2].predicted_s == pytest.approx(4.4)
    assert found[2].predicted_speedup == pytest.approx((8.4 / 4.2 + 8.4 / 4.6) / 2)
    missing = dataclasses.replace(repeated, predicted=None)
    found = {p.workers: p for p in strong_scaling(compare([*STRONG, missing]))[0].points}
    assert found[2].predicted_s is found[2].predicted_speedup is found[2].error is None
    assert found[4].predicted_s == pytest.approx(2.8), "other results keep theirs"
    baseline = dataclasses.replace(STRONG[0], predicted=None)
    (scaling,) = strong_scaling(compare([*STRONG, baseline]))
    assert all(point.predicted_speedup is None for point in scaling.points)


@pytest.mark.parametrize(
    "changes", [{"threads": 2}, {"trainer": {"compile": True}}, {"device": "cuda"}, {"backend": None}]
)
def test_the_baseline_of_weak_scaling_has_the_same_threads_treatment_and_hardware(
    changes: dict[str, Any],
) -> None:
    single = dataclasses.replace(WEAK[0], **{k: v for k, v in changes.items() if k != "trainer"})
    if "trainer" in changes:
        trainer = {**single.config["trainer"], **changes["trainer"]}
        single = dataclasses.replace(single, config={**single.config, "trainer": trainer})
    (scaling,) = weak_scaling(compare([single, *WEAK[1:]]))
    parallel = [point.speedup for point in scaling.points if point.workers > 1]
    assert all(parallel) == ("backend" in changes) and any(parallel) == ("backend" in changes)


def test_a_batch_that_workers_do_not_share_evenly_is_no_weak_scaling() -> None:
    assert weak_scaling(compare([run("single", 1, 33, 8.0), run("data_parallel", 3, 100, 5.0)])) == []


def test_the_missing_baseline_of_weak_scaling_is_named_with_its_command() -> None:
    (scaling,) = weak_scaling(compare(WEAK[1:]))
    note, crowded = scaling_notes(scaling)
    assert note.startswith("No speedups: one worker with a batch of 64 is missing; run it with: python -m")
    assert "trainer.batch_size=64" in note and "strategy=single" in note
    assert "on 4 workers has 4 threads on 2 cores" in crowded
    assert not any(n.startswith("No speedups") for n in scaling_notes(weak_scaling(compare(WEAK))[0]))


def test_scaling_by_batch() -> None:
    runs = [run(name, 2, batch, 100 / batch) for batch in (50, 100) for name in ("data_parallel", "ddp")]
    (scaling,) = batch_scaling(compare([*runs, run("single", 1, 50, 3.0)]))
    assert scaling.workers == 2 and [line.name for line in scaling.lines] == ["data_parallel", "ddp"]
    for line in scaling.lines:
        assert [point.batch_size for point in line.points] == [50, 100]
        assert [point.efficiency for point in line.points] == [0.75, None], "only batch 50 has a baseline"


def test_rates_are_needed_for_no_speedup() -> None:
    """Records from other sources have only times: their epochs count as whole."""
    bare = [
        dataclasses.replace(r, epochs=tuple(Epoch(epoch=e.epoch, seconds=e.seconds) for e in r.epochs))
        for r in WEAK
    ]
    (scaling,) = weak_scaling(compare(bare))
    assert scaling.points[1].speedup is not None
    assert scaling.points[1].speedup.ratio == pytest.approx(8 / 4.2)


def test_the_table_has_only_columns_with_values() -> None:
    columns, rows = scaling_table(strong_scaling(compare(STRONG))[0])
    assert "scheme" not in columns and "network" not in columns
    cells = dict(zip(columns, rows[1], strict=True))
    assert (cells["workers"], cells["batch"], cells["epoch s"]) == ("2", "100", "5.00")
    assert (cells["speedup"], cells["efficiency"]) == ("1.60×", "80 %")
    assert (cells["predicted s"], cells["measured/predicted"]) == ("4.20", "1.19 !")


def test_the_published_table_stands_beside_the_runs() -> None:
    columns, rows = krizhevsky_table(weak_scaling(compare(WEAK))[0])
    assert columns[:2] == ["workers", "batch (conv, FC)"] and columns[-1] == "published speedup"
    own = {tuple(row[:3]): row[3:7] for row in rows}
    assert own["1", "64, 64", "-"] == ["0.733", "16.67 %", "24.0 s", "1.00×"]
    assert own["2", "128, 128", "a"][2:] == ["12.6 s", "1.78×"]
    assert own["2", "128, 64", "b update=pass"][2:] == ["14.4 s", "1.56×"], "updated after every pass"
    published = {(row[0], row[7]): row[8:] for row in rows}
    assert published["2", "256, 128"] == ["2.614", "42.27 %", "50.90 h", "1.93×"]
    assert published["8", "1,024, 1,024"] == ["2.678", "43.28 %", "15.68 h", "6.25×"]
    assert len(rows) == 7 and ["8", "-", "-"] in [row[:3] for row in rows]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (12.34, "12.3 s"), (90.0, "1.50 min"), (3600.0, "1.00 h"), (352_980.0, "98.05 h")],
)
def test_durations(value: float | None, text: str) -> None:
    assert duration(value) == text


def test_the_report_draws_measured_predicted_and_linear_scaling() -> None:
    (section,) = scaling_sections(compare(STRONG))
    assert section.title == "Scaling: alexnet owt · digits, 1,000 images · 64 px · 10 classes · fp32"
    drawings = re.findall(r'<div class="xy">.*?</small></div>', section.body, re.DOTALL)
    assert len(drawings) == 3  # epoch time, efficiency, accuracy
    for svg in drawings:
        ElementTree.fromstring(svg)
    times = dict(re.findall(r"<title>([a-z_ ]+), workers 4: ([\d.]+) s</title>", drawings[0]))
    assert times == {"linear": "2", "data_parallel": "4", "predicted data_parallel": "2.8"}
    efficiency = dict(re.findall(r"<title>([a-z_ ]+), workers 4: ([\d.]+) %</title>", drawings[1]))
    assert efficiency == {"data_parallel": "50", "predicted data_parallel": "75"}


def test_the_page_of_a_very_large_sweep_stays_small() -> None:
    runs = [run("data_parallel", workers, batch, 1.0) for workers in (2, 4) for batch in range(8, 8 * 71, 8)]
    (section,) = scaling_sections(compare(runs))
    assert section.body.count("<h3>") == 12 and "Not shown: " in section.body
    assert "By batch, 2 workers" in section.body, "those with the most points are shown"
    assert len(section.body) < 200_000


def test_weak_scaling_in_the_report_has_the_published_table_and_escapes_names() -> None:
    hostile = run("<b>&", 4, 256, 2.0)
    (section,) = scaling_sections(compare([*WEAK, hostile]))
    assert "Beside one weird trick as published" in section.body and "50.90 h" in section.body
    assert "<b>&" not in section.body and "&lt;b&gt;&amp;" in section.body
    assert isinstance(section.body, Markup)


def test_the_command_exports_weak_scaling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, record in enumerate(WEAK):
        write_record(tmp_path / str(place), record)
    files = {kind: tmp_path / f"out.{kind}" for kind in ("json", "csv", "latex", "markdown")}
    options = [part for kind, file in files.items() for part in (f"--{kind}", str(file))]
    assert main([str(tmp_path), "--weak", "--no-report", *options]) == 0
    (scaling,) = json.loads(files["json"].read_text())
    (expected,) = weak_scaling(compare(WEAK))
    assert (scaling["scaling"], scaling["batch"]) == ("weak", 64)
    assert [row["batch_size"] for row in scaling["rows"]] == [point.batch_size for point in expected.points]
    assert [row["speedup"] for row in scaling["rows"]] == [
        point.speedup and point.speedup.ratio for point in expected.points
    ]
    lines = list(csv.DictReader(files["csv"].read_text().splitlines()))
    assert [line["batch_size"] for line in lines] == [str(point.batch_size) for point in expected.points]
    assert r"\caption{Weak scaling, batch 64 per worker;" in files["latex"].read_text()
    assert "## Weak scaling, batch 64 per worker" in files["markdown"].read_text()


def test_the_command_prints_weak_scaling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, record in enumerate(WEAK):
        write_record(tmp_path / str(i), record)
    assert main([str(tmp_path), "--weak"]) == 0
    out = capsys.readouterr().out
    assert "Weak scaling, batch 64 per worker" in out and "50.90 h" in out
    assert "Scaling: alexnet owt" in (tmp_path / "report.html").read_text()


def test_sort_and_weak_exclude_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, record in enumerate(WEAK):
        write_record(tmp_path / str(i), record)
    assert main([str(tmp_path), "--weak", "--sort", "speedup", "--no-report"]) == 2
    assert "--sort=speedup orders the rows of the comparison" in capsys.readouterr().err


def test_the_command_says_that_nothing_was_scaled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(tmp_path / "run", WEAK[0])
    assert main([str(tmp_path), "--weak"]) == 2
    assert (
        "on several numbers of workers, and there are none: global batches are 64" in capsys.readouterr().err
    )
