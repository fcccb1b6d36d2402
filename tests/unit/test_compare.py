"""From records to the table: pooling, baselines and notes."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from parallel.cli.result_tables import print_comparison
from parallel.compare import main
from parallel.results.comparison import compare
from parallel.results.comparison_table import WHO, cells
from parallel.results.labels import network_names
from parallel.results.notes import baseline_command, notes
from parallel.results.record_files import write_record
from parallel.results.records import Attempt, Record
from parallel.results.result import Result, workers_and_threads
from parallel.results.run_summary import run_summary
from parallel.results.stragglers import Straggler
from tests.support.made_records import ENVIRONMENT, WORKLOAD, made_hosts, made_record, of_workload

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "scripts" / "published_epoch_times.json"


def rows_of(*records: Record) -> dict[str, Result]:
    """Return the rows of records in one comparison, by label and threads."""
    (comparison,) = compare(records)
    return {f"{row.label} {row.key.workers}x{row.key.threads}": row for row in comparison.results}


def test_published_epoch_times_give_the_published_summary(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "import_epoch_times.py"))
    times = json.loads(PUBLISHED.read_text()) | {"sets": {}}  # predictions take seconds
    (tmp_path / "times.json").write_text(json.dumps(times))
    assert script["main"]([str(tmp_path / "times.json"), str(tmp_path / "out")]) == 0
    assert main([str(tmp_path / "out"), "--json", str(tmp_path / "out.json"), "--no-report"]) == 0
    rows = {
        (c["workload"]["data"], row["strategy"]): row
        for c in json.loads((tmp_path / "out.json").read_text())
        for row in c["rows"]
    }
    experiments = times["experiments"]
    assert len(rows) == len(experiments) == 8
    for experiment in experiments:
        row = rows[experiment["data"], experiment["strategy"]]
        assert list(row["epoch_s"].values()) == pytest.approx(experiment["published_summary_s"], abs=0.2)
        assert row["epochs"] == 20
    assert rows["dogs_vs_cats", "one_weird_trick"]["speedup"] == pytest.approx(265.9 / 209.65)
    assert rows["tiny_imagenet", "data_parallel"]["efficiency"] == pytest.approx(277.15 / 304.1 / 2)


def test_speedup_and_efficiency() -> None:
    rows = rows_of(made_record("single", (10.0, 10.0, 10.0)), made_record("data_parallel", (5.0, 6.0, 4.0)))
    row = rows["data_parallel 2x1"]
    assert row.speedup is not None and row.speedup.ratio == 2.0 and row.efficiency == 1.0
    assert rows["single 1x1"].role == "baseline" and rows["single 1x1"].speedup is not None
    assert list(rows) == ["single 1x1", "data_parallel 2x1"]


def test_the_baseline_is_first_and_others_have_the_order_of_their_records() -> None:
    names = ("ddp", "mine", "single", "data_parallel", "ddp")
    (comparison,) = compare([made_record(name, name=f"{name} {i}") for i, name in enumerate(names)])
    assert [result.key.strategy for result in comparison.results] == [
        "single",
        "ddp",
        "mine",
        "data_parallel",
    ]
    assert [result.place for result in comparison.results] == [0, 1, 2, 3]


def test_runs_of_the_same_thing_are_pooled() -> None:
    rows = rows_of(made_record("ddp", (5.0, 6.0), name="a"), made_record("ddp", (7.0, 8.0), name="b"))
    (row,) = rows.values()
    assert row.epoch_times == (5.0, 6.0, 7.0, 8.0) and len(row.records) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"scheme": "b"},
        {"workers": 3},
        {"threads": 2},
        {"plan": "another"},
        {"options": {"update": "pass"}},
        {"trainer": {"compile": True}},
    ],
)
def test_runs_of_other_things_are_not_pooled(changes: dict[str, Any]) -> None:
    rows = rows_of(
        made_record("one_weird_trick", scheme="a"),
        made_record("one_weird_trick", **{"scheme": "a", **changes}),
    )
    assert len(rows) == 2, "two rows, and two names"


@pytest.mark.parametrize(
    "changes",
    [
        {"workload": dataclasses.replace(WORKLOAD, batch_size=64)},
        {"environment": {**ENVIRONMENT, "cpu": "Another CPU"}},
        {"device": "cuda", "environment": {**ENVIRONMENT, "gpus": ["Some GPU"]}},
        {"environment": {**ENVIRONMENT, "emulated": {"hosts": 2, "rate": "1gbit"}}},
    ],
)
def test_only_like_is_compared_with_like(changes: dict[str, Any]) -> None:
    comparisons = compare([made_record("single"), made_record("ddp", **changes)])
    assert [[row.key.strategy for row in c.results] for c in comparisons] == [["single"], ["ddp"]]
    assert comparisons[1].results[0].speedup is None


@pytest.mark.parametrize("changes", [{"threads": 2}, {"workers": 2}, {"trainer": {"compile": True}}])
def test_only_the_same_threads_and_treatment_make_a_baseline(changes: dict[str, Any]) -> None:
    (comparison,) = compare([made_record("single", **changes), made_record("data_parallel")])
    (row,) = (row for row in comparison.results if row.key.strategy == "data_parallel")
    assert row.speedup is None


def test_missing_baseline_names_the_command_that_runs_it() -> None:
    record = made_record(
        "data_parallel",
        threads=2,
        trainer={"lr": 0.5, "seed": 0, "checkpoint": {"keep": 7}},
        workload=dataclasses.replace(WORKLOAD),
    )
    (comparison,) = compare([record])
    (first, *_) = notes(comparison)
    assert first.startswith(
        "No speedup for data_parallel: there is no single of this workload with 2 thread(s)"
    )
    words = shlex.split(baseline_command(record) or "")
    assert words[:5] == ["python", "-m", "parallel.train", "strategy=single", "workers=1"]
    assert {
        "model=alexnet",
        "model.variant=owt",
        "model.image_size=64",
        "data=digits",
        "trainer.batch_size=32",
        "trainer.precision=fp32",
        "trainer.lr=0.5",
        "cluster.threads=2",
        "cluster.device=cpu",
    } <= set(words)
    assert not any(
        word.startswith(("strategy.", "trainer.seed", "trainer.checkpoint", "data.cache")) for word in words
    )
    assert " ".join(words) in first


def test_the_baseline_of_an_emulated_cluster_runs_in_one_like_it() -> None:
    def command(**changes: Any) -> str | None:
        emulated = {"hosts": 2, "rate": "1gbit", "delay": None, "speed": "100%", **changes}
        return baseline_command(made_record("ddp", environment={**ENVIRONMENT, "emulated": emulated}))

    assert str(command()).startswith(
        "python -m parallel.emulate run --hosts=2 --rate=1gbit --workers-per-host=1,0 -- "
        "-m parallel.train strategy=single workers=1 "
    )
    changed = "python -m parallel.emulate run --workers-per-host=1,0 -- -m parallel.train "
    assert str(command(rate=["1gbit", "100mbit"])).startswith(changed)
    assert str(command(speed=["100%", "50%"])).startswith(changed)


def test_single_with_the_whole_machine_is_marked_and_held_against_the_same_baseline() -> None:
    base, ours = made_record("single", (10.0,) * 3), made_record("data_parallel", (5.0,) * 3)
    whole = made_record("single", (8.0,) * 3, threads=2)
    rows = rows_of(base, ours, whole)
    machine = rows["single 1x2"]
    assert machine.role == "machine" and machine.efficiency is None
    assert machine.speedup is not None and machine.speedup.ratio == pytest.approx(1.25)
    said = "\n".join(notes(compare([base, ours, whole])[0]))
    assert "Against single with 2 threads (the whole machine)" in said and "data_parallel 1.60×" in said


def test_one_epoch_has_no_interval_and_says_so() -> None:
    (comparison,) = compare([made_record("single", (10.0,)), made_record("ddp", (5.0,))])
    assert comparison.results[1].speedup is not None and comparison.results[1].speedup.low is None
    assert any("No interval for ddp" in note for note in notes(comparison))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"environment": {**ENVIRONMENT, "torch": "2.11.0"}}, "differ in torch: 2.11.0, 2.13.0"),
        (
            {"environment": {**ENVIRONMENT, "variables": {"MALLOC_TOP_PAD_": "1"}}},
            "differ in environment variables",
        ),
        ({"environment": {**ENVIRONMENT, "git_dirty": True}}, "uncommitted changes"),
    ],
)
def test_other_differences_are_told(changes: dict[str, Any], said: str) -> None:
    (comparison,) = compare([made_record("single"), made_record("ddp", **changes)])
    assert any(said in note for note in notes(comparison))
    started = {**ENVIRONMENT, "variables": {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}}
    same = made_record("ddp", trainer={"epochs": 9, "seed": 4}, environment=started)
    (alike,) = compare([made_record("single"), same])
    assert not any("differ" in note for note in notes(alike))


def interrupted(record: Record, *epochs: int) -> Record:
    """Return a record that was continued from a checkpoint within these epochs."""
    first = Attempt(step=0, started="2026-01-01", label=record.label, workers=record.workers, plan=None)
    again = dataclasses.replace(first, step=7, lost_s=12.5)
    rows = tuple(dataclasses.replace(e, timed=e.epoch not in epochs) for e in record.epochs)
    return dataclasses.replace(record, epochs=rows, attempts=(first, again), restarts=1)


def test_epochs_that_were_interrupted_count_in_losses_and_not_in_times() -> None:
    base, ours = made_record("single", (10.0, 10.0, 10.0)), made_record("ddp", (5.0, 50.0, 5.0))
    (comparison,) = compare([base, interrupted(ours, 2)])
    row = comparison.results[1]
    assert row.epoch_times == (5.0, 5.0) and row.speedup is not None and row.speedup.ratio == 2.0
    assert row.time_split() == rows_of(base, made_record("ddp", (5.0, 5.0)))["ddp 2x1"].time_split()
    assert [number for number, _ in row.curve("train_loss")] == [1, 2, 3] and row.top1 == 1 - 0.5 / 3
    said = "ddp (ddp) was started again 1 time: 1 epoch left out of its times, 12.5 s lost"
    assert said in notes(comparison)


def test_stragglers_are_named_in_notes_and_summary() -> None:
    slow = Straggler(worker=1, cause="forward", lost_s=0.02, share=0.1, epochs=(1,))
    base, calm = made_record("single", (10.0,)), made_record("ddp", (5.0, 5.0), stragglers=())
    ours = made_record("ddp", (5.0, 5.0), stragglers=(slow,))
    said = f"Straggler in ddp (ddp): {slow.sentence(2)}"
    assert [note for note in notes(compare([base, ours])[0]) if "traggler" in note] == [said]
    assert not any("traggler" in note for note in notes(compare([base, calm])[0]))
    assert run_summary(ours, None)["stragglers"] == slow.sentence(2)
    assert run_summary(calm, None)["stragglers"] == "none"
    assert "stragglers" not in run_summary(base, None)


def test_a_run_without_a_timed_epoch_is_left_out_and_named() -> None:
    base, ours = made_record("single", (10.0, 10.0)), interrupted(made_record("ddp", (5.0,)), 1)
    (comparison,) = compare([base, ours])
    assert [row.label for row in comparison.results] == ["single"]
    assert any(
        note.startswith("Left out: ddp (ddp), because none of its epochs") for note in notes(comparison)
    )
    with pytest.raises(ValueError, match="none of the runs has an epoch"):
        compare([ours])
    assert run_summary(ours, None)["restarts"] == 1


def test_rows_average_accuracy_and_split_time() -> None:
    row = rows_of(made_record("ddp", (10.0, 20.0)))["ddp 2x1"]
    assert row.top1 == 0.75 and row.bytes_per_epoch == 10_000_000
    assert row.time_split() == pytest.approx(
        {"compute_s": 10.5, "communication_s": 2.25, "data_wait_s": 0.75, "idle_s": 1.5, "other": 0.0}
    )
    assert row.curve("train_loss") == [(1, 2.3), (2, 1.15)]


def test_plain_text_is_a_line_per_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(tmp_path / "a", made_record("single", (10.0, 11.0, 12.0)))
    write_record(tmp_path / "b", made_record("one_weird_trick", (5.0, 5.5, 6.0), scheme="a"))
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("one_weird_trick")]
    assert line.split()[:11] == [
        "one_weird_trick",
        "a",
        "2",
        "1",
        "3",
        "5.00",
        "5.25",
        "5.50",
        "5.50",
        "5.75",
        "6.00",
    ]
    assert "2.00×" in line and "100 %" in line and "10 MB" in line
    assert (tmp_path / "report.html").is_file() and f"report: {tmp_path / 'report.html'}" in out


@pytest.mark.parametrize("width", [80, 200])
def test_terminal_table_fits(width: int) -> None:
    options = {"micro_batches": 4}
    (comparison,) = compare(
        [
            made_record("single", (300.0, 301.0)),
            made_record("one_weird_trick", scheme="a"),
            made_record("model_parallel", scheme="layers", options=options),
        ]
    )
    text = io.StringIO()
    print_comparison(comparison, Console(file=text, width=width, force_terminal=True, color_system=None))
    lines = [line for line in text.getvalue().splitlines() if line.strip().startswith("one_weird_trick")]
    assert len(lines) == (2 if width == 80 else 1)
    assert "…" not in text.getvalue() and "micro_batches=4" in text.getvalue()
    assert max(map(len, text.getvalue().splitlines()[:2])) <= width


def test_json_and_csv_alone_on_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(tmp_path / "a", made_record("single", (10.0, 11.0, 12.0)))
    write_record(tmp_path / "b", made_record("ddp", (5.0, 5.5, 6.0), plan=None))
    assert main([str(tmp_path), "--json", "-", "--no-report"]) == 0
    (comparison,) = json.loads(capsys.readouterr().out)
    assert [row["speedup"] for row in comparison["rows"]] == [1.0, 2.0]
    assert main([str(tmp_path), "--csv", "-", "--no-report"]) == 0
    single, ddp = csv.DictReader(io.StringIO(capsys.readouterr().out))
    values = [ddp[name] for name in ("strategy", "batch_size", "epoch_s_median", "speedup")]
    assert values == ["ddp", "32", "5.5", "2.0"]
    assert single["speedup_low"] == "" and not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("damage", ["absent", "empty", "truncated"])
def test_bad_input_is_one_line_and_exit_code_2(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if damage == "truncated":
        write_record(tmp_path, made_record())
        (tmp_path / "epochs.csv").write_text("epoch\n")
    assert main([str(tmp_path / "x" if damage == "absent" else tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and str(tmp_path) in err


def test_speedup_in_sweep(tmp_path: Path) -> None:
    record = made_record("ddp", (5.0, 5.0))
    write_record(tmp_path / "ddp", record)
    assert "no baseline" in str(run_summary(record, tmp_path)["speedup_note"])
    write_record(tmp_path / "single", made_record("single", (10.0, 10.0)))
    summary = run_summary(record, tmp_path)
    assert (
        summary["speedup"] == 2.0 and summary["efficiency"] == 1.0 and summary["epoch_seconds/median"] == 5.0
    )
    elsewhere = dataclasses.replace(record, environment={"cpu": "Another CPU"})
    assert "speedup" not in run_summary(elsewhere, tmp_path)
    (tmp_path / "single" / "epochs.csv").unlink()
    assert "does not exist" in str(run_summary(record, tmp_path)["speedup_note"])


def test_a_damaged_record_does_not_hide_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, strategy in (("a", "single"), ("b", "ddp"), ("c<", "data_parallel")):
        write_record(tmp_path / name, made_record(strategy))
    (tmp_path / "c<" / "record.json").write_text("{")
    assert main([str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    reason = f"{tmp_path / 'c<' / 'record.json'} is truncated or not JSON"
    assert "ddp" in out and "data_parallel" not in out
    assert err.startswith(f"warning: left out: {reason}") and len(err.splitlines()) == 1
    assert f"Left out: {reason.replace('<', '&lt;')}" in (tmp_path / "report.html").read_text(
        encoding="utf-8"
    )
    # A run directory, or a record, that is given itself.
    for named in (tmp_path / "c<", tmp_path / "c<" / "record.json"):
        assert main([str(tmp_path), str(named)]) == 2
        assert capsys.readouterr().err.startswith(f"error: {reason}")
    for name in ("a", "b"):
        (tmp_path / name / "epochs.csv").unlink()
    assert main([str(tmp_path)]) == 2
    assert "none of the 3 records can be read" in capsys.readouterr().err


HOSTILE = "\x1b[2Jx\x1b]0;title\x07\x9b1m\u202e\udc80\r\n"


def test_nothing_of_a_record_controls_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = {"cpu": HOSTILE, "python": HOSTILE}
    changes: dict[str, Any] = {"name": HOSTILE, "scheme": HOSTILE, "label": HOSTILE}
    for name, strategy in (("a", HOSTILE), ("b", "ddp")):
        record = dataclasses.replace(made_record(), strategy=strategy, environment=environment, **changes)
        record = of_workload(record, model=HOSTILE)
        write_record(tmp_path / name, record)
    broken = tmp_path / "\x1b[2J"
    broken.mkdir()
    (broken / "record.json").write_text("{")
    assert main([str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert main([str(tmp_path), "--csv", "-", "--no-report"]) == 0
    for text in (out, err, *capsys.readouterr()):
        assert "\\x1b[2J" in text
        assert all(char.isprintable() or char in "\n" for char in text)
    assert main([str(broken)]) == 2
    assert "\x1b" not in capsys.readouterr().err


class TestHosts:
    """Runs on other hosts or over another network are other results."""

    def rows(self, *hosts: Any, workers: int = 2) -> list[Result]:
        records = [made_record("data_parallel", workers=workers, hosts=of) for of in hosts]
        (comparison,) = compare([made_record(hosts=made_hosts(1)), *records])
        return list(comparison.results[1:])

    def test_equal_hosts_are_pooled(self) -> None:
        (row,) = self.rows(made_hosts(1, 1, bandwidth=118e6), made_hosts(1, 1, bandwidth=120e6))
        assert len(row.records) == 2 and row.key.hosts == (1, 1) and row.key.network == "952 Mbit/s"
        assert row.speedup is not None, "the baseline has one host"
        assert workers_and_threads(row) == "2 workers × 1 thread on 2 hosts at 952 Mbit/s"

    @pytest.mark.parametrize(
        "hosts, heading, values",
        [
            ((made_hosts(2), made_hosts(1, 1)), "hosts", ["1", "2 × 1"]),
            (
                (made_hosts(1, 1, bandwidth=125e6), made_hosts(1, 1, bandwidth=625e6)),
                "network",
                ["1 Gbit/s", "5 Gbit/s"],
            ),
        ],
    )
    def test_others_are_not(self, hosts: Any, heading: str, values: list[str]) -> None:
        rows = self.rows(*hosts)
        names, lines = cells(rows, WHO)
        assert [line[names.index(heading)] for line in lines] == values
        assert set(names) & {"hosts", "network"} == {heading}, "a column of equal values is left out"

    def test_uneven_hosts(self) -> None:
        rows = self.rows(made_hosts(2, 1), made_hosts(1, 2), workers=3)
        assert [row.key.hosts_text for row in rows] == ["2 + 1", "1 + 2"]
        assert workers_and_threads(rows[0]) == "3 workers × 1 thread on hosts of 2 + 1"

    def test_records_without_hosts(self) -> None:
        """It is not known where they ran: they are not pooled with others, and need no column."""
        rows = self.rows((), made_hosts(2))
        assert len(rows) == 2 and "hosts" not in cells(rows, WHO)[0]

    def test_networks_begin_at_gaps(self) -> None:
        names = network_names([1e9, 1.2e9, 1.45e9, 3e9])
        assert list(names.values()) == ["9.6 Gbit/s"] * 3 + ["24 Gbit/s"]
