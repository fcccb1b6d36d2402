"""Data sent to W&B, read from the offline run; and the progress display."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from rich.console import Console

from parallel.config import TrackerConfig
from parallel.results.record_files import write_record
from parallel.results.records import Epoch
from parallel.results.run_summary import run_summary
from parallel.results.tracker import NAMES, Tracker, open_tracker
from parallel.training.progress import Progress, clock, epoch_line
from tests.support.made_records import made_epochs, made_record
from tests.support.wandb_files import read_back

SINGLE, OURS = made_record("single", (10.0, 10.0)), made_record("ddp", (5.0, 5.0))


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Simulate a machine without an account, and a server that does not answer."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    yield
    wandb.teardown()  # it keeps the credentials of one test for the next


def tracked(run_dir: Path, config: TrackerConfig, summary: dict[str, float | str] | None = None) -> None:
    """Track a run of two epochs."""
    with open_tracker(
        config,
        run_dir=run_dir,
        name="ours",
        group="sweep-1",
        job_type="ddp",
        config_dict={"trainer": {"lr": 0.1}},
    ) as tracker:
        for epoch in OURS.epochs:
            tracker.log_epoch(epoch)
        tracker.finish(summary or {})


def test_offline_run_holds_epochs_and_summary(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_record(tmp_path / "single", SINGLE)
    tracked(tmp_path / "run", TrackerConfig(), run_summary(OURS, tmp_path))
    out, err = capfd.readouterr()
    (line,) = (out + err).splitlines()
    assert line.startswith(
        f"W&B run kept offline; upload it with: wandb sync {tmp_path}/run/wandb/offline-run-"
    )

    log = read_back(tmp_path / "run")
    (run,) = [entry["run"] for entry in log if entry["type"] == "run"]
    assert (run["project"], run["run_group"], run["job_type"], run["display_name"]) == (
        "parallel",
        "sweep-1",
        "ddp",
        "ours",
    )
    assert run["config"]["update"]["trainer"]["lr"] == 0.1
    history = [entry["history"]["item"] for entry in log if entry["type"] == "history"]
    assert [item["epoch"] for item in history] == [1, 2]
    assert history[1]["train/loss"] == OURS.epochs[1].train_loss and history[0]["time/epoch_seconds"] == 5.0
    assert set(NAMES.values()) <= set(history[0])
    metrics = [entry["metric"] for entry in log if entry["type"] == "metric"]
    assert any(metric.get("glob_name") == "*" and metric.get("step_metric") == "epoch" for metric in metrics)
    summary: dict[str, Any] = {}
    for entry in log:
        if entry["type"] == "summary":
            summary |= entry["summary"].get("update", {})
    assert summary["speedup"] == 2.0 and summary["images_per_second"] == 1437 / 5
    assert [summary[f"epoch_seconds/{n}"] for n in ("min", "q1", "median", "mean", "q3", "max")] == [5] * 6


def test_every_field_of_an_epoch_has_a_name() -> None:
    assert list(NAMES) != [] and set(NAMES) == set(Epoch.__dataclass_fields__)


def test_what_was_not_measured_is_not_sent(tmp_path: Path) -> None:
    config = TrackerConfig()
    with open_tracker(
        config, run_dir=tmp_path, name="n", group=None, job_type="t", config_dict={}
    ) as tracker:
        tracker.log_epoch(Epoch(epoch=1, seconds=2.0))
    (item,) = [entry["history"]["item"] for entry in read_back(tmp_path) if entry["type"] == "history"]
    sent = {name for name in item if not name.startswith("_")}
    assert sent == {"epoch", "time/epoch_seconds", "time/timed"}


def test_runs_of_one_process_do_not_merge(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tracked(tmp_path / name, TrackerConfig())
        assert len([entry for entry in read_back(tmp_path / name) if entry["type"] == "history"]) == 2


def test_a_resumed_run_goes_on_as_the_same_run_and_a_new_one_does_not(tmp_path: Path) -> None:
    ids = []
    for resumed in (False, True, False):
        arguments = {"run_dir": tmp_path, "name": "n", "group": None, "job_type": "t", "config_dict": {}}
        with open_tracker(TrackerConfig(), **arguments, resumed=resumed) as tracker:
            tracker.log_epoch(Epoch(epoch=1, seconds=2.0))
        ids.append((tmp_path / "wandb_id").read_text())
    assert ids[0] == ids[1] != ids[2]
    folders = [len(list((tmp_path / "wandb").glob(f"offline-run-*-{run}*"))) for run in (ids[0], ids[2])]
    assert folders == [2, 1]


def test_online_without_a_key_goes_offline_and_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tracked(tmp_path, TrackerConfig(mode="online"))
    assert "no key (`wandb login` or WANDB_API_KEY), so the run is kept offline" in capfd.readouterr().out
    assert read_back(tmp_path)


def test_a_server_that_does_not_answer_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setattr("parallel.results.tracker.INIT_TIMEOUT_S", 1.0)
    tracked(tmp_path, TrackerConfig())
    out = capfd.readouterr().out
    assert "; the run is kept offline" in out and "wandb sync" in out
    assert read_back(tmp_path)


def test_a_failed_run_counts_as_failed(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError),
        open_tracker(TrackerConfig(), run_dir=tmp_path, name="n", group=None, job_type="t", config_dict={}),
    ):
        raise RuntimeError
    (entry,) = [entry for entry in read_back(tmp_path) if entry["type"] == "exit"]
    assert entry["exit"]["exit_code"] == 1


def test_no_tracker_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracked(tmp_path / "run", TrackerConfig(name="none"))
    assert (
        type(
            open_tracker(
                TrackerConfig(name="none"),
                run_dir=tmp_path,
                name="n",
                group=None,
                job_type="t",
                config_dict={},
            )
        )
        is Tracker
    )
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracked(tmp_path / "run", TrackerConfig())
    assert list(tmp_path.iterdir()) == []


def shown(terminal: bool, enabled: bool = True) -> str:
    """Return the output of a run with two epochs of three steps."""
    text = io.StringIO()
    console = Console(file=text, width=120, force_terminal=terminal, color_system=None)
    with Progress(2, 3, "ddp", batch_size=32, enabled=enabled, console=console) as progress:
        for epoch in made_epochs([1.0, 2.0]):
            for step in (1, 2, 3):
                progress.step(epoch.epoch, step, 0.5)
            progress.phase("validation")
            progress.epoch(epoch)
    return text.getvalue()


def test_a_line_per_epoch_where_there_is_no_terminal() -> None:
    assert shown(terminal=False).splitlines() == [
        "ddp  epoch 1/2  1.00 s  1437.0 images/s  loss 2.3000  validation 2.2000  top-1 50.0 %",
        "ddp  epoch 2/2  2.00 s  718.5 images/s  loss 1.1500  validation 1.1000  top-1 75.0 %",
    ]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parallel.training.progress.DRAW_EVERY_S", 0.0)
    out = shown(terminal=True)
    assert (
        "epoch 2/2  step 2/3  loss 0.500" in out
        and "images/s" in out
        and "left" in out
        and "validation" in out
    )
    assert shown(terminal=True, enabled=False) == "" and shown(terminal=False, enabled=False) == ""


class Reading:
    """A loss that counts its reads, each of which would synchronise with a device."""

    times = 0

    def __float__(self) -> float:
        self.times += 1
        return 1.0


def test_a_step_costs_little_and_does_not_read_the_loss() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    loss, steps = Reading(), 20_000
    with Progress(1, steps, "ddp", batch_size=32, console=console) as progress:
        start = time.perf_counter()
        for step in range(1, steps + 1):
            progress.step(1, step, loss)
        spent = time.perf_counter() - start
    assert spent / steps < 50e-6
    assert loss.times <= spent / 0.5 + 1


def test_lines_leave_out_what_is_unknown() -> None:
    assert epoch_line(Epoch(epoch=1, seconds=2.0), 3, "single") == "single  epoch 1/3  2.00 s"
    assert (clock(59.6), clock(3661)) == ("1:00", "1:01:01")
