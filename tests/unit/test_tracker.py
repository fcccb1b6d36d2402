"""Data sent to W&B, read from the offline run; and the progress display."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from rich.console import Console

from parallel.cli.compose import compose_config
from parallel.config import TrackerConfig
from parallel.results.predicted import Predicted
from parallel.results.record_files import write_record
from parallel.results.records import Epoch, Record
from parallel.results.run_summary import run_summary
from parallel.results.tracker import RunFacts, Tracker, open_tracker
from parallel.results.tracker.connection import KnownRun, offline_parts, read_known
from parallel.results.tracker.names import MOST_TAG, run_name, settings, tags
from parallel.results.tracker.report_job import send_report
from parallel.results.tracker.tracker import NAMES
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


def facts(*overrides: str, record: Record = OURS, **changes: Any) -> RunFacts:
    """Return the facts of the run of `record`."""
    values: dict[str, Any] = {
        "config": compose_config([f"strategy={record.strategy}", *overrides]),
        "workload": record.workload,
        "label": record.label,
        "workers": record.workers,
        "hosts": 1,
        "device": "cpu",
        "plan": None,
        "folder": None,
    }
    return RunFacts(**{**values, **changes})


def tracked(
    run_dir: Path, config: TrackerConfig, summary: dict[str, float | str] | None = None, record: Record = OURS
) -> None:
    """Track a run of two epochs in the sweep `sweep-1`."""
    with open_tracker(config, facts("sweep=sweep-1", record=record), run_dir) as tracker:
        for epoch in record.epochs:
            tracker.log_epoch(epoch)
        tracker.finish(summary or {})


def run_of(log: list[dict[str, Any]]) -> dict[str, Any]:
    (run,) = [entry["run"] for entry in log if entry["type"] == "run"]
    return dict(run)


def summary_of(log: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the summary that W&B shows after this part of a run."""
    summary: dict[str, Any] = {}
    for entry in log:
        if entry["type"] == "summary":
            summary |= entry["summary"].get("update", {})
    return summary


def artifacts_of(log: list[dict[str, Any]]) -> dict[str, set[str]]:
    """Return the names of the files of each artifact, by its type."""
    return {
        entry["artifact"]["type"]: {file["path"] for file in entry["artifact"]["manifest"]["contents"]}
        for entry in log
        if entry["type"] == "artifact"
    }


def test_offline_run_holds_epochs_and_summary(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_record(tmp_path / "single", SINGLE)
    write_record(tmp_path / "run", OURS)
    tracked(tmp_path / "run", TrackerConfig(), run_summary(OURS, tmp_path))
    out, err = capfd.readouterr()
    assert out + err == f"W&B run kept offline; upload it with: wandb sync {tmp_path}/run/wandb\n"

    log = read_back(tmp_path / "run")
    run = run_of(log)
    assert (run["project"], run["run_group"], run["job_type"]) == ("parallel", "sweep-1", "ddp")
    assert run["display_name"] == "ddp · 2 workers · batch 32 · digits"
    assert run["tags"] == ["ddp", "2 workers", "1 host", "cpu", "digits", "alexnet owt", "sweep-1"]
    assert run["config"]["update"]["lr"] == 0.002 and run["config"]["update"]["batch_size"] == 32
    assert artifacts_of(log) == {"record": {"record.json", "epochs.csv"}}
    history = [entry["history"]["item"] for entry in log if entry["type"] == "history"]
    assert [item["epoch"] for item in history] == [1, 2]
    assert history[1]["train/loss"] == OURS.epochs[1].train_loss and history[0]["time/epoch_seconds"] == 5.0
    assert set(NAMES.values()) <= set(history[0])
    metrics = [entry["metric"] for entry in log if entry["type"] == "metric"]
    assert any(metric.get("glob_name") == "*" and metric.get("step_metric") == "epoch" for metric in metrics)
    summary = summary_of(log)
    assert summary["speedup"] == 2.0 and summary["images_per_second"] == 1437 / 5
    assert [summary[f"epoch_seconds/{n}"] for n in ("min", "q1", "median", "mean", "q3", "max")] == [5] * 6


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"label": "one_weird_trick a"}, "one_weird_trick a · 2 workers · batch 32 · digits"),
        ({"device": "cuda", "workers": 1}, "ddp · 1 GPU · batch 32 · digits"),
        ({"hosts": 2}, "ddp · 2 workers on 2 hosts · batch 32 · digits"),
        (
            {"folder": "strategy=ddp,trainer.lr=0.1,data.weights=[1,2],strategy.bucket_mb=5"},
            "ddp · 2 workers · batch 32 · digits · lr 0.1 · weights [1,2]",
        ),
        ({"folder": "strategy=ddp,hosts=2,rate=1gbit", "hosts": 2}, None),
        ({"folder": "a" * 20}, "ddp · 2 workers · batch 32 · digits"),
        ({"label": "x" * 200}, "x" * 128),
    ],
)
def test_names_say_what_differs(changes: dict[str, Any], name: str | None) -> None:
    expected = name or "ddp · 2 workers on 2 hosts · batch 32 · digits · rate 1gbit"
    assert run_name(facts(**changes)) == expected


def test_threads_are_named_where_workers_have_several() -> None:
    assert run_name(facts("cluster.threads=2")).startswith("ddp · 2 workers × 2 threads · ")


def test_tags_fit_into_the_limit_of_the_server() -> None:
    assert max(map(len, tags(facts(f"sweep={'s' * 100}")))) == MOST_TAG


def test_settings_are_flat_and_without_noise() -> None:
    values = settings(facts("trainer.lr=0.5", "data.flip=true", "strategy.bucket_mb=5"))
    assert all(isinstance(value, (str, int, float, bool)) for value in values.values())
    assert values["lr"] == 0.5 and values["flip"] is True and values["bucket_mb"] == 5
    assert values["strategy"] == "ddp" and values["data"] == "digits" and values["workers"] == 2
    assert values.keys() & {"cache", "root", "timeout_s", "mode", "trace", "gamma", "name"} == set()


def test_the_plan_and_its_drawing_are_an_artifact_named_by_the_fingerprint(tmp_path: Path) -> None:
    plan = "workers: 2\nops:\n  conv1: {n: 2, on: [0, 1]}\n  fc8: {on: [0]}\n"
    with open_tracker(TrackerConfig(), facts(), tmp_path) as tracker:
        tracker.log_plan(plan, "0a1b2c3d")
    (artifact,) = [entry["artifact"] for entry in read_back(tmp_path) if entry["type"] == "artifact"]
    assert (artifact["name"], artifact["type"]) == ("plan-0a1b2c3d", "plan")
    files = {file["path"]: Path(file["local_path"]) for file in artifact["manifest"]["contents"]}
    assert files.keys() == {"plan.yaml", "plan.html"}
    assert files["plan.yaml"].read_text() == plan
    assert '<table class="plan">' in files["plan.html"].read_text()


def test_a_prediction_stands_in_the_summary_beside_the_measurement() -> None:
    predicted = Predicted(
        epoch_s=4.0,
        step_s=0.1,
        compute_s=3.0,
        communication_s=0.5,
        idle_s=0.25,
        data_wait_s=0.25,
        cluster="this machine",
        calibrated=True,
    )
    summary = run_summary(dataclasses.replace(OURS, predicted=predicted), None)
    assert (summary["epoch_seconds/predicted"], summary["measured/predicted"]) == (4.0, 1.25)
    assert "measured/predicted" not in run_summary(OURS, None)


def test_every_field_of_an_epoch_has_a_name() -> None:
    assert list(NAMES) != [] and set(NAMES) == set(Epoch.__dataclass_fields__)


def test_what_was_not_measured_is_not_sent(tmp_path: Path) -> None:
    with open_tracker(TrackerConfig(), facts(), tmp_path) as tracker:
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
        with open_tracker(TrackerConfig(), facts(), tmp_path, resumed=resumed) as tracker:
            tracker.log_epoch(Epoch(epoch=1, seconds=2.0))
        known = read_known(tmp_path)
        assert known is not None
        ids.append(known.id)
    assert ids[0] == ids[1] != ids[2]
    folders = [len(list((tmp_path / "wandb").glob(f"offline-run-*-{run}*"))) for run in (ids[0], ids[2])]
    assert folders == [2, 1]


def test_parts_of_a_run_that_are_kept_offline(tmp_path: Path) -> None:
    names = [f"offline-run-20260101_120000-{rest}" for rest in ("a1", "a1-1", "a1-2", "a10", "b2-1")]
    for name in names:
        (tmp_path / "wandb" / name).mkdir(parents=True)
    (tmp_path / "wandb" / names[0] / "run-a1.wandb.synced").touch()
    assert [part.name for part in offline_parts(tmp_path, "a1")] == names[1:3]


def test_a_damaged_file_of_the_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "wandb.json").write_text('{"id": 5}')
    with pytest.raises(ValueError, match=r"wandb\.json"):
        open_tracker(TrackerConfig(), facts(), tmp_path, resumed=True)


def test_a_run_that_is_offline_in_part_goes_on_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for resumed in (False, True):
        with open_tracker(TrackerConfig(), facts(), tmp_path, resumed=resumed) as tracker:
            tracker.log_epoch(Epoch(epoch=1, seconds=2.0))
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)  # the server would be tried from here on
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2
    assert "the run is kept offline" not in capfd.readouterr().out, "the server was asked"


def test_an_agent_of_wandb_chooses_the_id_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "sw33p")
    monkeypatch.setenv("WANDB_RUN_ID", "agent123")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    tracked(tmp_path, TrackerConfig())
    known = read_known(tmp_path)
    assert known is not None and (known.id, known.project) == ("agent123", "theirs")
    run = run_of(read_back(tmp_path))
    assert (run["run_id"], run["project"], run["sweep_id"]) == ("agent123", "theirs", "sw33p")
    with pytest.raises(ValueError, match="WANDB_SWEEP_ID"):
        send_report([tmp_path])


def sweep_of_two(folder: Path) -> None:
    """Leave a tracked run, and then its baseline, in `folder`."""
    for record in (OURS, SINGLE):
        run_dir = folder / record.strategy
        write_record(run_dir, record)
        tracked(run_dir, TrackerConfig(), run_summary(record, folder), record)


def test_the_report_job_shows_the_comparison_and_replaces_itself(tmp_path: Path) -> None:
    sweep_of_two(tmp_path)
    for _ in range(2):
        said = send_report([tmp_path])
        assert f"wandb sync {tmp_path}/wandb {tmp_path}/*/wandb" in said
        log = read_back(tmp_path)  # fails if there are two
        run = run_of(log)
        assert (run["job_type"], run["run_group"], run["resume"]) == ("report", "demo", True)
        assert run["run_id"].startswith("report-") and run["display_name"] == "report · demo"
        assert artifacts_of(log)["report"] == {"report.html", "comparison.csv", "comparison.json"}
        (item,) = [entry["history"]["item"] for entry in log if entry["type"] == "history"]
        kinds = {name.removesuffix("._type"): item[name] for name in item if name.endswith("._type")}
        expected = {"comparison": "table-file", "report": "html-file", "speedup": "html-file"}
        assert kinds == {**expected, "epoch times": "html-file"}
        assert summary_of(log)["fastest"].startswith("ddp, 2.00×")
    (file,) = (tmp_path / "wandb").glob("offline-run-*/files/media/table/comparison_*.json")
    shown = json.loads(file.read_text())
    speedups = dict(zip(*(column_of(shown, name) for name in ("strategy", "speedup")), strict=True))
    assert speedups == {"single": 1.0, "ddp": 2.0}


def column_of(shown: dict[str, Any], name: str) -> list[Any]:
    place = shown["columns"].index(name)
    return [line[place] for line in shown["data"]]


def test_a_run_that_ended_before_its_baseline_gets_its_speedup(tmp_path: Path) -> None:
    sweep_of_two(tmp_path)
    run_dir = tmp_path / "ddp"
    assert "speedup" not in summary_of(read_back(run_dir))
    assert "speedups of 1 run sent again" in send_report([tmp_path])
    first, second = sorted((run_dir / "wandb").glob("offline-run-*"), key=lambda path: path.name)
    assert first.name.split("-")[3] == second.name.split("-")[3]
    (run_dir / "first").mkdir()
    (run_dir / "first" / "wandb").mkdir()
    first.rename(run_dir / "first" / "wandb" / first.name)
    before, log = read_back(run_dir / "first"), read_back(run_dir)
    assert run_of(log)["resume"] is True
    assert [run_of(log)[key] for key in ("display_name", "tags", "run_group")] == [
        run_of(before)[key] for key in ("display_name", "tags", "run_group")
    ]
    # `wandb sync` gives the run the summary of its last part, so it must hold the whole one.
    kept = {name for name in summary_of(before) if not name.startswith("_")} - {"speedup_note"}
    assert kept | {"speedup", "efficiency"} <= summary_of(log).keys()
    assert summary_of(log)["speedup"] == 2.0
    assert "sent again" not in send_report([tmp_path])


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
    monkeypatch.setattr("parallel.results.tracker.connection.INIT_TIMEOUT_S", 1.0)
    KnownRun(id="12345678", project="parallel", name="n", job_type="ddp").write(tmp_path)
    with open_tracker(TrackerConfig(), facts(), tmp_path, resumed=True):
        pass
    out = capfd.readouterr().out
    assert "; the run is kept offline" in out and "wandb sync" in out
    assert run_of(read_back(tmp_path))["run_id"] == "12345678"


def test_a_failed_run_counts_as_failed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), open_tracker(TrackerConfig(), facts(), tmp_path):
        raise RuntimeError
    (entry,) = [entry for entry in read_back(tmp_path) if entry["type"] == "exit"]
    assert entry["exit"]["exit_code"] == 1


def test_no_tracker_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracked(tmp_path / "run", TrackerConfig(name="none"))
    assert type(open_tracker(TrackerConfig(name="none"), facts(), tmp_path)) is Tracker
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
                progress.step(epoch.epoch, step, lambda: 0.5)
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

    def __call__(self) -> float:
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
