"""Runs and sweeps with real processes: torchrun, run directory, errors, exit codes, no leftover
processes.

The job is tests/support/fake_job.py, which does not train; FAKE_JOB says what it does instead.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed.run

from parallel.cli.process_tree import runs
from parallel.cli.ranks import Ranks
from parallel.cli.sweep import (
    Outcome,
    Torchrun,
    command,
    finished,
    launcher_environment,
    rerun_command,
    set_aside,
    summary,
)
from parallel.results.record_files import read_record, write_record
from tests.support.commands import Run, Start
from tests.support.fake_job import record
from tests.support.fake_sweeps import JOB, errors, fake, job
from tests.support.waiting import free_port, wait_for


def test_plain_python_makes_one_run_directory(run: Run, tmp_path: Path) -> None:
    done = run(JOB, "strategy=single", "trainer.epochs=2")
    assert done.returncode == 0, done.stderr
    folders = list((tmp_path / "runs").iterdir())
    assert len(folders) == 1 and folders[0].name.endswith("_single")
    assert read_record(folders[0]).config["trainer"]["epochs"] == 2
    assert "trainer.epochs=2" in (folders[0] / ".hydra" / "overrides.yaml").read_text()


def test_torchrun_ranks_share_one_run_directory(torchrun: Run, tmp_path: Path) -> None:
    done = torchrun(2, JOB, "strategy=one_weird_trick")
    assert done.returncode == 0, done.stderr
    folders = list((tmp_path / "runs").iterdir())
    assert len(folders) == 1
    assert (folders[0] / "started").read_text() == "world 2, threads 1\n"
    assert read_record(folders[0]).config["workers"] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}, "nobody writes anywhere else"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--config-name=other"], ["--config-name=other", "conf/"]),
        (["-m", "strategy=ddp,nope"], ["strategy=nope"]),
        (
            ["-m", "strategy=ddp,single", "hydra/launcher=torchrun"],
            ["workers=None", "strategy=ddp", "workers=2"],
        ),
        (["-m", "strategy=single", "trainer.epochs=2,0", "hydra/launcher=torchrun"], ["trainer.epochs=0"]),
        (
            ["-m", "strategy=single,ddp", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
            [
                "hydra/launcher=joblib",
                "-m strategy=single,ddp hydra/launcher=torchrun hydra.launcher.jobs=2`",
            ],
        ),
        (
            ["-m", "strategy=single", "hydra/launcher=torchrun", "hydra.launcher.nnodes=two"],
            ["hydra.launcher.nnodes=two"],
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], words: list[str], run: Run, tmp_path: Path
) -> None:
    done = run(JOB, *arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")
    for word in words:
        assert word in done.stderr
    assert list(tmp_path.rglob("started")) == [], "no job was started"


def test_the_traceback_of_bad_input_on_request(run: Run) -> None:
    done = run(JOB, "strategy=single", environment={**fake(single="refuse"), "PARALLEL_FULL_ERROR": "1"})
    assert done.returncode == 2
    assert errors(done.stderr) == ["error: trainer.batch_size=33 can't be split by single"]
    assert "in act" in done.stderr


def test_help_and_cfg_still_work(run: Run, tmp_path: Path) -> None:
    assert "strategy: accelerate, data_parallel, ddp" in run(JOB, "--help").stdout
    assert "name: ddp" in run(JOB, "--cfg", "job", "strategy=ddp").stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, actions, sentence",
    [
        (["strategy=ddp"], {"ddp": "refuse"}, "trainer.batch_size=33 can't be split by ddp"),
        (["strategy=single"], {}, "strategy=single needs 1 process, but torchrun started 2"),
        (
            ["-m", "strategy=ddp,data_parallel", "trainer.epochs=1"],
            {},
            "use `python -m tests.support.fake_job -m strategy=ddp,data_parallel trainer.epochs=1 "
            "hydra/launcher=torchrun workers=2`",
        ),
    ],
)
def test_under_torchrun_one_rank_speaks_for_all(
    arguments: list[str], actions: dict[str, str], sentence: str, torchrun: Run, tmp_path: Path
) -> None:
    done = torchrun(2, JOB, *arguments, environment=fake(**actions))
    assert done.returncode == 2
    assert len(errors(done.stderr)) == 1 and sentence in errors(done.stderr)[0]
    assert list(tmp_path.rglob("record.json")) == []


def test_one_failing_rank_ends_all_and_is_named(torchrun: Run, tmp_path: Path) -> None:
    """Rank 0 waits in an all-reduce for rank 1, and fails only because rank 1 is gone."""
    root = "RuntimeError: boom in ddp"
    began = time.monotonic()
    done = torchrun(2, JOB, "strategy=ddp", environment=fake(**{"ddp@1": "raise"}))
    assert done.returncode == 1
    assert time.monotonic() - began < 600, "not after the 1800 s of the collective's timeout"
    cause = done.stderr.partition("Root Cause (first observed failure)")[2]
    assert root in cause and "rank      : 1" in cause, done.stderr
    assert root in done.stderr.partition("Root Cause")[0], "the rank itself said it, too"
    assert list(tmp_path.rglob("record.json")) == []


def test_one_rank_that_refuses_ends_all_with_its_sentence(torchrun: Run, tmp_path: Path) -> None:
    done = torchrun(2, JOB, "strategy=ddp", environment=fake(**{"ddp@1": "refuse"}))
    assert done.returncode == 2
    assert "error: trainer.batch_size=33 can't be split by ddp" in done.stderr.splitlines()
    assert list(tmp_path.rglob("record.json")) == []


SWEEP = ["-m", "strategy=ddp,single", "workers=2", "hydra/launcher=torchrun"]


def test_a_sweep_goes_on_after_a_failure_and_again_skips_what_is_finished(run: Run, tmp_path: Path) -> None:
    first = run(JOB, *SWEEP, environment=fake(ddp="raise"))
    assert first.returncode == 1
    assert "strategy=ddp failed" in first.stderr and "RuntimeError: boom in ddp" in first.stderr
    assert errors(first.stderr)[-1] == "error: 1 of 2 jobs failed: strategy=ddp"
    assert "1 done, 1 failed" in first.stdout
    sweeps = list((tmp_path / "runs").iterdir())
    assert len(sweeps) == 1 and sweeps[0].name.startswith("sweep-")
    assert [path.parent.name for path in sweeps[0].rglob("record.json")] == ["strategy=single"]

    again = run(JOB, *SWEEP)
    assert again.returncode == 0, again.stderr
    assert "1 done, 1 skipped" in again.stdout
    records = {path.parent.name: read_record(path) for path in sweeps[0].rglob("record.json")}
    assert {name: found.workers for name, found in records.items()} == {
        "strategy=single": 1,
        "strategy=ddp": 2,
    }
    assert {found.sweep for found in records.values()} == {sweeps[0].name}
    assert {path.parent.name: len(path.read_text().splitlines()) for path in sweeps[0].rglob("started")} == {
        "strategy=single": 1,
        "strategy=ddp": 2,
    }
    assert list((tmp_path / "runs").iterdir()) == sweeps


def test_an_experiment_is_a_sweep_of_one_command_and_runs_equal_jobs_once(run: Run, tmp_path: Path) -> None:
    done = run(JOB, "-m", "experiment=weak_scaling", "strategy=single,ddp")
    assert done.returncode == 0, done.stderr
    assert "3 done, 1 skipped" in done.stdout
    assert "strategy=single,workers=2  the same run as strategy=single,workers=1" in done.stdout
    folder = tmp_path / "runs" / "weak_scaling"
    found = {path.parent.name: read_record(path) for path in folder.rglob("record.json")}
    assert {name: (r.workers, r.config["trainer"]["batch_size"], r.sweep) for name, r in found.items()} == {
        "strategy=single,workers=1": (1, 32, "weak_scaling"),
        "strategy=ddp,workers=1": (1, 32, "weak_scaling"),
        "strategy=ddp,workers=2": (2, 64, "weak_scaling"),
    }


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["forked", "real"])
def test_a_changed_configuration_runs_again_and_the_old_run_is_kept(
    real: bool, run: Run, tmp_path: Path
) -> None:
    sweep = ["-m", "strategy=single", "hydra/launcher=torchrun", "sweep=mine"]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    for epochs in (1, 2):
        done = run(
            JOB,
            *sweep,
            f"trainer.epochs={epochs}",
            "hydra.sweep.subdir=job",
            environment={"TMPDIR": str(temporary)},
            real=real,
        )
        assert done.returncode == 0, done.stderr
        assert list(temporary.iterdir()) == [], "neither the sweep nor torchrun leaves a folder"
    found = {
        str(path.parent.relative_to(tmp_path)): read_record(path).config["trainer"]["epochs"]
        for path in tmp_path.rglob("record.json")
    }
    assert found == {"runs/mine/job": 2, "runs/mine.replaced/job": 1}


def test_a_sweep_in_one_process_skips_what_is_finished(run: Run, tmp_path: Path) -> None:
    for skipped in (0, 2):
        done = run(JOB, "-m", "strategy=single,ddp")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("is already finished") == skipped
        said = (
            "strategy=ddp runs on one worker, since the sweep has no launcher; for two, add: hydra/launcher="
        )
        assert done.stdout.count(said) == (skipped == 0), "single is meant to"
    assert len(list(tmp_path.rglob("record.json"))) == 2


@pytest.mark.parametrize("launcher", [[], ["hydra/launcher=torchrun"]], ids=["one process", "torchrun"])
def test_two_jobs_with_one_folder_are_refused(launcher: list[str], run: Run, tmp_path: Path) -> None:
    done = run(JOB, "-m", "strategy=single,single", "sweep=mine", *launcher)
    assert done.returncode == 2
    assert errors(done.stderr) == [
        "error: hydra.sweep.subdir=strategy=single must differ between the jobs of a sweep: two of them have the "
        f"folder {tmp_path / 'runs' / 'mine' / 'strategy=single'} (is a value given twice?)"
    ]
    assert len(list(tmp_path.rglob("started"))) == (not launcher)
    assert not (tmp_path / "runs" / "mine.replaced").exists()


@pytest.mark.parametrize("sign, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_sweep_leaves_no_process(
    sign: signal.Signals, code: int, start: Start, tmp_path: Path
) -> None:
    sweep = start(JOB, *SWEEP, environment=fake(ddp="sleep"))
    check_stop(sweep, sign, tmp_path)
    assert sweep.returncode == code
    assert "1 interrupted, 1 not started" in (sweep.stdout.read() if sweep.stdout is not None else "")


def test_a_killed_sweep_leaves_no_process(start: Start, tmp_path: Path) -> None:
    check_stop(start(JOB, *SWEEP, environment=fake(ddp="sleep")), signal.SIGKILL, tmp_path)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_torchrun_leaves_no_process_and_no_folder(
    sign: signal.Signals, start: Start, tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = start(
        *("parallel.torchrun", "--nproc-per-node=2", "-m", JOB, "strategy=ddp"),
        environment={**fake(ddp="sleep"), "TMPDIR": str(temporary)},
    )
    check_stop(process, sign, tmp_path)
    assert process.returncode != 0
    assert list(temporary.iterdir()) == []


def test_a_torchrun_that_is_stopped_while_it_waits_for_others_leaves_no_folder(
    start: Start, tmp_path: Path
) -> None:
    process = start(
        *("parallel.torchrun", "--nnodes=2", "--node-rank=1", f"--master-port={free_port()}", "-m", JOB),
        environment={"TMPDIR": str(tmp_path)},
    )
    wait_for(lambda: bool(list(tmp_path.iterdir())), 90)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=40)
    assert process.returncode == 143
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "action, code, error", [("ok", 0, None), ("raise", 1, "RuntimeError: boom in single")]
)
def test_torchrun_removes_its_folder_and_leaves_the_one_of_the_user(
    action: str, code: int, error: str | None, run: Run, tmp_path: Path
) -> None:
    temporary, own, error_file = tmp_path / "temporary", tmp_path / "own", tmp_path / "error.json"
    temporary.mkdir()
    started = ("parallel.torchrun", "--nproc-per-node=1")
    environment = {**fake(single=action), "TMPDIR": str(temporary)}
    environment["TORCHELASTIC_ERROR_FILE"] = str(error_file)
    done = run(*started, "-m", JOB, "strategy=single", environment=environment)
    assert done.returncode == code, done.stderr
    assert list(temporary.iterdir()) == []
    assert (error in error_file.read_text()) if error else not error_file.exists()
    done = run(*started, f"--log-dir={own}", "-m", JOB, "strategy=single", environment=environment)
    assert done.returncode == code, done.stderr
    assert list(temporary.iterdir()) == [] and len(list(own.iterdir())) == 1


def check_stop(process, sign: signal.Signals, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    def pids() -> list[int]:
        return [int(path.name.removeprefix("pid-")) for path in tmp_path.rglob("pid-*")]

    wait_for(lambda: len(pids()) == 4 or process.poll() is not None, 90)  # two ranks, a child of each
    assert len(pids()) == 4 and all(runs(pid) for pid in pids())
    process.send_signal(sign)
    process.wait(40)
    wait_for(lambda: not any(runs(pid) for pid in pids()), 5)
    assert all((path.parent / "record.json").exists() is False for path in tmp_path.rglob("pid-*"))


def test_the_command_of_a_job(tmp_path: Path) -> None:
    alone = command(job(tmp_path, "strategy=ddp", workers=4, index=3), Torchrun(module="a.b"))
    assert alone[1:] == [
        "-m",
        "parallel.cli.torchrun",
        "--nproc-per-node=4",
        "--max-restarts=0",
        "-m",
        "a.b",
        "strategy=ddp",
    ]
    nodes = command(
        job(tmp_path, "strategy=ddp", workers=4, index=3), Torchrun(module="a.b", nnodes=2, node_rank=1)
    )
    assert {"--nnodes=2", "--node-rank=1", "--nproc-per-node=2", "--master-port=29503"} <= set(nodes)
    again = rerun_command(job(tmp_path, "strategy=ddp", "hydra.run.dir='a b'"), Torchrun(module="a.b"))
    assert again == "python -m parallel.torchrun --nproc-per-node=2 -m a.b strategy=ddp"


def test_torchrun_ignores_a_hangup_as_the_sweep_does(tmp_path: Path) -> None:
    one = job(tmp_path, "strategy=ddp")
    assert "PET_SIGNALS_TO_HANDLE" not in launcher_environment(one, tmp_path, tmp_path / "error.json")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        variables = launcher_environment(one, tmp_path, tmp_path / "error.json")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert "SIGHUP" not in variables["PET_SIGNALS_TO_HANDLE"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PET_SIGNALS_TO_HANDLE", variables["PET_SIGNALS_TO_HANDLE"])
        options = torch.distributed.run.parse_args(["script.py"])
    assert options.signals_to_handle == "SIGTERM,SIGINT,SIGQUIT"


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"nnodes": 0}, "nnodes=0"),
        ({"nnodes": "2"}, "nnodes=2 must be a whole number"),
        ({"nnodes": 2, "node_rank": 2}, "node_rank=2"),
        ({"master_port": 70000}, "master_port=70000"),
        ({"stop_on_failure": 1}, "stop_on_failure=1"),
        ({"grace_s": -1}, "grace_s=-1"),
        ({"max_restarts": 1.5}, "max_restarts=1.5 must be a whole number"),
    ],
)
def test_launcher_settings_are_checked(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Torchrun(**settings)  # type: ignore[arg-type]


def test_finished_means_whole_and_the_same_configuration(tmp_path: Path) -> None:
    one = job(tmp_path, "strategy=ddp")
    assert not finished(one.run_dir, one.config)
    write_record(one.run_dir, record(one.config))
    assert finished(one.run_dir, one.config)
    for other in ("trainer.seed=1", "cluster.threads=2", "model.dropout=0.4", "tracker=none"):
        assert not finished(one.run_dir, job(tmp_path, "strategy=ddp", other).config), other
    path = one.run_dir / "record.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match="record.json"):
        finished(one.run_dir, one.config)


def test_results_are_set_aside_never_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = job(tmp_path, "strategy=ddp")
    assert set_aside(one.run_dir, one.sweep_dir, one.config) is None
    for name in ("job", "job-2"):
        write_record(one.run_dir, record(one.config))
        assert capsys.readouterr().out == ""
        replaced = tmp_path / "sweep.replaced" / name
        assert set_aside(one.run_dir, one.sweep_dir, one.config) == replaced
        line = f"the run of another configuration in {one.run_dir} was moved to {replaced}\n"
        assert capsys.readouterr().out == line
        assert not one.run_dir.exists()


def test_the_summary_has_a_line_for_every_job(tmp_path: Path) -> None:
    one = job(tmp_path, "strategy=ddp")
    text = summary([Outcome(one, "done", 1.25), Outcome(one, "failed", 61.0, "RuntimeError: boom")])
    assert text.splitlines()[0].endswith("sweep: 1 done, 1 failed")
    assert [line.split() for line in text.splitlines()[1:]] == [
        ["done", "1.2", "s", "job"],
        ["failed", "61.0", "s", "job", "RuntimeError:", "boom"],
    ]


@pytest.mark.parametrize(
    "environment, words",
    [
        ({"RANK": "0"}, "WORLD_SIZE="),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK=x"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 .*below WORLD_SIZE=2"),
    ],
)
def test_a_senseless_environment_is_refused(environment: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Ranks.from_environment(environment)


def test_the_first_rank_to_fail_is_the_root_cause_and_speaks(tmp_path: Path) -> None:
    from torch.distributed import HashStore

    store, messages = HashStore(), ["boom", "boom", "lost a peer"]
    spoke, times = [], []
    for rank, message in enumerate(messages):
        file = tmp_path / f"error-{rank}"
        ranks = Ranks(rank, 3, True, {"TORCHELASTIC_ERROR_FILE": str(file)}, store)
        spoke.append(ranks.report(message, f"details of {rank}"))
        content = json.loads(file.read_text())["message"]
        assert (content["message"], content["extraInfo"]["py_callstack"]) == (message, f"details of {rank}")
        times.append(int(content["extraInfo"]["timestamp"]))
    assert spoke == [True, False, True]
    assert times == sorted(set(times)), "each later, in whole seconds, than the one before"


def test_a_port_in_use_is_named(run: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run(JOB, *SWEEP, "hydra.launcher.nnodes=2", f"hydra.launcher.master_port={port}")
        assert done.returncode == 2 and f"hydra.launcher.master_port={port} is in use" in done.stderr


class Stopped:
    """A store whose process is stopped."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: threading.Event().wait()


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_do_not_wait_for_ever_for_a_stopped_store(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("parallel.cli.ranks.ANSWER_S", 0.0)
    environment = {
        "MASTER_ADDR": "host",
        "MASTER_PORT": "1",
        "TORCHELASTIC_ERROR_FILE": str(tmp_path / "error"),
    }
    ranks = Ranks(rank, 2, True, environment, Stopped(), limit_s=0.1)  # type: ignore[arg-type]
    said = "the launcher's store at host:1 has not answered for 0.2 s"
    with pytest.raises(ValueError, match=said):
        ranks.share("run_dir", lambda: "runs/one")
    ranks.limit_s = 600.0
    assert ranks.report("boom", "details"), "every rank prints its own error, and waits no second time"
    assert said in capsys.readouterr().err and (tmp_path / "error").exists()
    ranks.stay()


def test_jobs_side_by_side_fail_and_are_resumed_as_in_turn(run: Run, tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    sweep = ["-m", "strategy=single,ddp", "workers=1", "sweep=mine", "hydra/launcher=torchrun"]
    refused = run(JOB, *sweep, f"hydra.launcher.jobs={cores + 1}")
    assert refused.returncode == 2 and f"this machine has {cores}" in refused.stderr
    sweep.append(f"hydra.launcher.jobs={min(2, cores)}")
    failed = run(JOB, *sweep, environment=fake(single="raise"))
    assert failed.returncode == 1 and ": 1 done, 1 failed" in failed.stdout
    assert "strategy=single failed" in failed.stderr and "RuntimeError: boom in single" in failed.stderr
    done = run(JOB, *sweep)
    assert done.returncode == 0 and ": 1 done, 1 skipped" in done.stdout, done.stderr
    for strategy in ("single", "ddp"):
        assert read_record(tmp_path / "runs" / "mine" / f"strategy={strategy}").strategy == strategy
