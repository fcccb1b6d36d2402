"""--watch renews tables and report while runs are at work, and shows their epochs so far."""

from __future__ import annotations

import dataclasses
import os
import socket
import time
from pathlib import Path

import pytest

from parallel import compare
from parallel.cli.watch import ended, interval_s, watch
from parallel.results.record_files import EPOCHS, PART, RecordWriter, write_record
from parallel.results.records import Record
from parallel.results.report import Live
from parallel.results.report.page import page
from parallel.results.run_lock import LOCK, at_work, locked
from parallel.results.running import running_runs
from tests.support.made_records import WORKLOAD, made_epochs, made_record


def started(run_dir: Path, epochs: int = 2, config: str = "trainer:\n  epochs: 5\n") -> RecordWriter:
    """Return the writer of a run that has trained some epochs; its last row is not complete."""
    writer = RecordWriter(run_dir)
    for epoch in made_epochs((2.0,) * epochs):
        writer.append(epoch)
    (run_dir / ".hydra").mkdir()
    (run_dir / ".hydra" / "config.yaml").write_text(config)
    return writer


def test_unfinished_runs_show_their_complete_rows(tmp_path: Path) -> None:
    with started(tmp_path / "ddp"), (tmp_path / "ddp" / PART).open("a") as part:
        part.write("3,1.9")
        part.flush()
        with locked(tmp_path / "ddp"):
            ((run,), errors) = running_runs([tmp_path])
    assert errors == [] and len(run.epochs) == 2 and run.at_work
    assert str(run) == f"{tmp_path / 'ddp'}: 2 of 5 epochs, the last in 2.00 s, loss 1.15, top-1 75.0 %"
    html = page([], running=[run])
    assert "2 of 5 epochs" in html and ">running<" in html and "refresh" not in html


@pytest.mark.parametrize(
    ("rows", "config"), [("epoch,what\n1,2\n", ""), ("", "trainer: [1\n"), ("epoch\n\xff\n", "")]
)
def test_rows_that_cannot_be_read_are_named(tmp_path: Path, rows: str, config: str) -> None:
    started(tmp_path / "ddp").close()
    if rows:
        (tmp_path / "ddp" / PART).write_text(rows)
    (tmp_path / "ddp" / ".hydra" / "config.yaml").write_text(config)
    runs, errors = running_runs([tmp_path])
    assert runs == [] and len(errors) == 1 and str(tmp_path / "ddp") in errors[0]


@pytest.mark.parametrize(
    "words",
    [
        f"process {2**22 + 1} on {socket.gethostname()}",
        f"process {os.getpid()} on elsewhere.",
        "",
        "process 9",
    ],
    ids=["gone", "elsewhere", "empty", "cut"],  # the process's number differs between the workers of xdist
)
def test_only_a_process_that_lives_here_is_at_work(tmp_path: Path, words: str) -> None:
    assert not at_work(tmp_path)
    (tmp_path / LOCK).write_text(words)
    assert not at_work(tmp_path)


def test_watching_ends_when_no_run_is_at_work_and_none_has_written(tmp_path: Path) -> None:
    write_record(tmp_path / "done", made_record("ddp"))
    assert not ended([tmp_path]), "a run has just ended: the next job of its sweep may follow"
    long_ago = time.time() - 1000
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.utime(path, (long_ago, long_ago))
    assert ended([tmp_path])
    with locked(tmp_path / "done"):
        os.utime(tmp_path / "done" / LOCK, (long_ago, long_ago))
        assert not ended([tmp_path])


def test_renewed_until_the_end_and_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long_ago = time.time() - 1000
    calls: list[bool] = []

    def sleep(seconds: float) -> None:
        assert seconds == 7.0
        if len(calls) == 3:
            os.utime(tmp_path, (long_ago, long_ago))

    monkeypatch.setattr(time, "sleep", sleep)
    watch(calls.append, [tmp_path], 7.0)
    assert calls == [False, False, False, True]


@pytest.mark.parametrize("given", ["0", "x", "nan", "1e9"])
def test_intervals_that_are_refused(given: str) -> None:
    assert interval_s("") == 5.0 and interval_s("2.5") == 2.5
    with pytest.raises(ValueError, match="must be a number of seconds from 1 to 3,600"):
        interval_s(given)


def test_the_page_reloads_itself_only_while_it_is_renewed() -> None:
    live = page([], live=Live("21:30:00", 5.0))
    assert '<meta http-equiv="refresh" content="5">' in live and "Written at 21:30:00" in live
    assert "refresh" not in page([])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(tmp_path / "single", made_record("single"))
    long_ago = time.time() - 1000
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.utime(path, (long_ago, long_ago))
    assert compare.main([str(tmp_path), "--watch=2"]) == 0
    assert "single" in capsys.readouterr().out and "refresh" not in (tmp_path / "report.html").read_text()
    for arguments, message in (
        ([str(tmp_path), "--watch="], "--watch= must have a value after ="),
        ([str(tmp_path), "--watch=0"], "--watch=0 must be a number of seconds"),
        ([str(tmp_path / "absent"), "--watch"], "needs folders that exist"),
        ([str(tmp_path), "--watch", "--csv", "-"], "takes standard output: give a file"),
    ):
        assert compare.main(arguments) == 2
        assert message in capsys.readouterr().err


def test_watching_begins_before_the_first_run_has_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(tmp_path / "ddp") as writer:
        (tmp_path / "ddp" / EPOCHS).unlink(missing_ok=True)

        def interrupt(seconds: float) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(time, "sleep", interrupt)
        assert compare.main([str(tmp_path), "--watch"]) == 130
        assert "2 of 5 epochs" in capsys.readouterr().out
        assert 'http-equiv="refresh"' in (tmp_path / "report.html").read_text()
        assert writer is not None


def run(strategy: str, workers: int, batch: int) -> Record:
    workload = dataclasses.replace(WORKLOAD, batch_size=batch)
    return made_record(strategy, (2.0,) * 3, workers=workers, workload=workload, plan=f"{strategy} {batch}")


@pytest.mark.parametrize("finished", [0, 1])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--weak"], "too few runs yet: --weak compares runs with equal batches per worker"),
        (["borders=ethernet_1g"], "too few runs yet: borders=ethernet_1g needs runs of several strategies"),
        (["--sort", "-speedup,lr"], ""),
        (["--weak", "--csv", "weak.csv"], "written: weak.csv"),
    ],
)
def test_what_needs_more_runs_is_awaited(
    finished: int,
    arguments: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Watching goes on, shows the run at work and says what is missing; at the end that is an error."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "sweep"
    for number in range(finished):
        write_record(folder / str(number), run("single", 1, 64))
    renewed: list[str] = []

    def sleep(seconds: float) -> None:
        renewed.append(capsys.readouterr().out)
        if len(renewed) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    with started(folder / "ddp"):
        assert compare.main([str(folder), "--watch=1", *arguments]) == 130
    assert len(renewed) == 2 and all(said in out and "2 of 5 epochs" in out for out in renewed)
    assert capsys.readouterr().err == ""
    if "--sort" not in arguments:
        assert compare.main([str(folder), *arguments]) == 2


def test_what_was_awaited_is_shown_when_its_runs_have_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    later = [run("data_parallel", 2, 128)]
    renewed: list[str] = []

    def sleep(seconds: float) -> None:
        renewed.append(capsys.readouterr().out)
        if not later:
            raise KeyboardInterrupt
        write_record(tmp_path / "second", later.pop())

    write_record(tmp_path / "first", run("single", 1, 64))
    monkeypatch.setattr(time, "sleep", sleep)
    assert compare.main([str(tmp_path), "--watch=1", "--weak"]) == 130
    before, after = renewed
    assert "too few runs yet" in before and "weak scaling" not in before.lower()
    assert "too few runs yet" not in after and "weak scaling" in after.lower()


@pytest.mark.parametrize("column", ["spedup", "-median,momentun"])
def test_a_column_that_no_table_has_is_refused_at_once(
    column: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with started(tmp_path / "ddp"):
        assert compare.main([str(tmp_path), "--watch=1", "--sort", column]) == 2
    assert "is not known; it must be one of strategy, scheme" in capsys.readouterr().err
