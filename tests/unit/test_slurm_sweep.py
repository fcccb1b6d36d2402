"""Jobs of a sweep at Slurm: options, batch script, what squeue says; Slurm's commands are replaced."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from parallel.cli import slurm_sweep
from parallel.cli.application import fit_world
from parallel.cli.compose import compose_config
from parallel.cli.slurm_job import Slurm, batch_script, folder_of, sbatch_options
from parallel.cli.slurm_queue import (
    JobState,
    QueueError,
    cancel,
    own_environment,
    read_states,
    require_slurm,
    sbatch_reason,
)
from parallel.cli.sweep import Job, SweepFailed
from parallel.config import Config
from parallel.results.record_files import write_record
from tests.support.commands import ROOT
from tests.support.fake_job import record


@functools.cache
def configured(strategy: str, workers: int) -> Config:
    return fit_world(compose_config([f"strategy={strategy}", f"workers={workers}"]), workers, launched=True)


def job(folder: Path, strategy: str = "ddp", workers: int = 2, index: int = 0) -> Job:
    config = configured(strategy, workers)
    return Job(
        index=index,
        overrides=(f"strategy={strategy}", f"hydra.run.dir={folder}/a b"),
        config=config,
        workers=workers,
        run_dir=folder / f"strategy={strategy}",
        sweep_dir=folder,
    )


def test_options_of_sbatch(tmp_path: Path) -> None:
    slurm = Slurm(
        tasks_per_node=4,
        gpus_per_node=4,
        mem_gb=1.5,
        partition="gpu",
        additional_parameters={"mail_user": "me", "exclusive": True, "nice": False},
    )
    options = sbatch_options(job(tmp_path, workers=6), slurm)
    assert options["nodes"] == "2" and options["ntasks"] == "6" and options["ntasks-per-node"] == "4"
    assert options["gpus-per-node"] == "4" and options["mem"] == "1536M" and options["partition"] == "gpu"
    assert options["mail-user"] == "me" and options["exclusive"] == "" and "nice" not in options
    assert options["signal"] == "USR1@120" and options["time"] == "60" and options["requeue"] == ""
    assert "account" not in options and "gres" not in options


@pytest.mark.parametrize(
    "workers, tasks_per_node, nodes, count",
    [(1, 1, None, 1), (2, 1, None, 2), (6, 4, None, 2), (4, 4, 2, 2), (1, 4, 2, 1)],
)
def test_nodes_of_a_job(workers: int, tasks_per_node: int, nodes: int | None, count: int) -> None:
    assert Slurm(tasks_per_node=tasks_per_node, nodes=nodes).node_count(workers) == count


@pytest.mark.parametrize(
    "options, words",
    [
        ({"timeout_min": "an hour"}, "hydra.launcher.timeout_min=an hour must be a whole number"),
        ({"tasks_per_node": 0}, "hydra.launcher.tasks_per_node=0"),
        ({"timeout_min": None}, "hydra.launcher.timeout_min=None must be a whole number"),
        ({"partition": "a\nb"}, "hydra.launcher.partition"),
        ({"partition": 3}, "hydra.launcher.partition=3 must be a text"),
        ({"setup": "module load cuda"}, "hydra.launcher.setup=module load cuda must be a list"),
        ({"mem_gb": -1}, "hydra.launcher.mem_gb=-1 must be a number above 0"),
        ({"wait": "no"}, "hydra.launcher.wait=no must be true or false"),
        ({"additional_parameters": "nice"}, "hydra.launcher.additional_parameters=nice must be a mapping"),
        ({"additional_parameters": {"a\n#SBATCH --x": 1}}, "must be the name of an option of sbatch"),
    ],
)
def test_options_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        Slurm(**options)


def test_nodes_that_do_not_fit_the_workers() -> None:
    with pytest.raises(ValueError, match=re.escape("hydra.launcher.nodes=1 must be from 2 to 4")):
        Slurm(nodes=1, tasks_per_node=2).node_count(4)


def test_the_batch_script(tmp_path: Path) -> None:
    one = job(tmp_path)
    text = batch_script(
        one, Slurm(module="m", setup=["module load x"], srun_args=["--mpi=none"]), Path("/w d")
    )
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert f"#SBATCH --output={tmp_path}/strategy=ddp/slurm/log-%j.txt" in lines
    assert "#SBATCH --requeue" in lines and "cd '/w d' || exit 1" in lines
    assert lines.index("module load x") < lines.index(
        "srun --kill-on-bad-exit=0 --wait=600 --cpus-per-task=1 --mpi=none \\"
    )
    assert f" -m m strategy=ddp 'hydra.run.dir={tmp_path}/a b'" in text
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


@pytest.mark.parametrize(
    "code, restarts, limit, requeued",
    [(143, "", 5, True), (143, "5", 5, False), (1, "", 5, False), (0, "", 5, False)],
)
def test_a_stopped_run_is_queued_again(
    code: int, restarts: str, limit: int, requeued: bool, tmp_path: Path
) -> None:
    """The script itself, with srun and scontrol replaced."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", f"exit {code}"), ("scontrol", f'echo "$@" > {tmp_path}/asked; exit 1')):
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    script = batch_script(job(tmp_path), Slurm(module="m", max_requeues=limit), tmp_path)
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": restarts}
    ended = subprocess.run(["bash"], input=script, text=True, env=environment, timeout=20)
    assert ended.returncode == code
    asked = tmp_path / "asked"
    assert (asked.read_text().split() if asked.exists() else None) == (["requeue", "7"] if requeued else None)


def test_states_of_squeue() -> None:
    found = read_states("12|PENDING|Resources|a|b\n13|COMPLETED|None|c\n")
    assert found == {"12": JobState("PENDING", "Resources", "a|b"), "13": JobState("COMPLETED", "None", "c")}
    assert str(found["12"]) == "pending (Resources)" and not found["12"].ended
    assert str(found["13"]) == "completed" and found["13"].ended


def test_the_reason_of_sbatch() -> None:
    said = (
        "sbatch: error: invalid partition specified: x\nsbatch: error: Batch job submission failed: Invalid\n"
    )
    assert sbatch_reason(said) == "invalid partition specified: x; Batch job submission failed: Invalid"


def test_a_sweep_in_a_job_does_not_pass_on_its_variables() -> None:
    inside = {"SLURM_JOB_ID": "1", "SLURM_CONF": "/c", "SBATCH_ACCOUNT": "a", "HOME": "/h"}
    assert own_environment(inside) == {"SLURM_CONF": "/c", "SBATCH_ACCOUNT": "a", "HOME": "/h"}


def test_slurm_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="needs Slurm, and sbatch, squeue, scancel cannot be found"):
        require_slurm()


def test_jobs_that_a_silent_slurm_does_not_cancel_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def silent(*_: Any, timeout: float, **__: Any) -> None:
        raise subprocess.TimeoutExpired("scancel", timeout)

    monkeypatch.setattr(subprocess, "run", silent)
    cancel(["1", "2"])
    said = "warning: the jobs 1, 2 may go on: scancel has not answered for 120 s"
    assert capsys.readouterr().err.strip() == said


class FakeSlurm:
    """A queue in which every job runs through given states, one at each question."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: str) -> None:
        self.answers = list(answers)
        self.submitted: list[tuple[str, str | None]] = []
        self.cancelled: list[str] = []
        self.names: dict[str, str] = {}
        self.rejects: str | None = None
        self.signals: signal.Signals | None = None
        monkeypatch.setattr(slurm_sweep, "require_slurm", lambda: None)
        monkeypatch.setattr(slurm_sweep, "submit", self.submit)
        monkeypatch.setattr(slurm_sweep, "states", self.states)
        monkeypatch.setattr(slurm_sweep, "cancel", self.cancelled.extend)

    def submit(self, script: Path, after: str | None) -> str:
        name = script.parent.parent.name
        if self.rejects == name:
            raise ValueError("invalid partition specified: x")
        job_id = str(len(self.submitted) + 1)
        self.submitted.append((name, after))
        self.names[job_id] = name
        if self.signals is not None:  # Slurm has the job, and sbatch has not stated its id yet
            signal.raise_signal(self.signals)
        return job_id

    def states(self, ids: list[str]) -> dict[str, JobState]:
        answer = self.answers.pop(0)
        if answer == "silent":
            raise QueueError("no answer")
        if answer == "Ctrl-C":
            raise KeyboardInterrupt
        if answer == "unknown":
            return {}
        return {one: JobState(answer, "None", self.names[one]) for one in ids if one in self.names}


FAST = Slurm(module="m", poll_s=0.001)


def two(folder: Path) -> list[Job]:
    return [job(folder, "ddp", 2, 0), job(folder, "single", 1, 1)]


def test_jobs_are_submitted_and_awaited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeSlurm(monkeypatch, "PENDING", "RUNNING", "silent", "RUNNING", "COMPLETED")
    slurm_sweep.run_jobs(two(tmp_path), FAST)
    assert fake.submitted == [("strategy=ddp", None), ("strategy=single", None)]
    printed = capsys.readouterr()
    assert "job 1, strategy=ddp: running\n" in printed.out and f"{tmp_path}: 2 done" in printed.out
    assert "warning: Slurm does not answer, asked again: no answer" in printed.err


def test_a_finished_job_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeSlurm(monkeypatch, "COMPLETED")
    jobs = two(tmp_path)
    jobs[0].run_dir.mkdir()
    write_record(jobs[0].run_dir, record(jobs[0].config))
    slurm_sweep.run_jobs(jobs, FAST)
    assert fake.submitted == [("strategy=single", None)]


def test_at_most_so_many_jobs_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeSlurm(monkeypatch, "COMPLETED")
    slurm_sweep.run_jobs(two(tmp_path), Slurm(module="m", poll_s=0.001, array_parallelism=1))
    assert fake.submitted == [("strategy=ddp", None), ("strategy=single", "1")]


def test_a_failed_job_states_its_first_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    FakeSlurm(monkeypatch, "FAILED")
    one = job(tmp_path)
    folder_of(one).mkdir(parents=True)
    for rank, (when, text) in enumerate([("7", "lost the others"), ("6", "RuntimeError: boom")]):
        message = {"message": text, "extraInfo": {"py_callstack": text, "timestamp": when}}
        (folder_of(one) / f"error-{rank}.json").write_text(json.dumps({"message": message}))
    with pytest.raises(SweepFailed, match="1 of 1 jobs failed: strategy=ddp"):
        slurm_sweep.run_jobs([one], FAST)
    printed = capsys.readouterr()
    assert "strategy=ddp failed (job 1: failed):\nRuntimeError: boom" in printed.err
    assert "job 1 failed: RuntimeError: boom" in printed.out


def test_a_job_that_slurm_has_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeSlurm(monkeypatch, "unknown")
    with pytest.raises(SweepFailed):
        slurm_sweep.run_jobs([job(tmp_path)], FAST)


def test_ctrl_c_cancels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeSlurm(monkeypatch, "RUNNING", "Ctrl-C")
    with pytest.raises(KeyboardInterrupt):
        slurm_sweep.run_jobs(two(tmp_path), FAST)
    assert fake.cancelled == ["1", "2"]
    printed = capsys.readouterr()
    assert "cancelled the jobs 1, 2" in printed.err and "2 interrupted" in printed.out


def test_ctrl_c_while_a_job_is_submitted_cancels_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fake = FakeSlurm(monkeypatch)
    fake.signals = signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        slurm_sweep.run_jobs(two(tmp_path), FAST)
    assert [name for name, _ in fake.submitted] == ["strategy=ddp"] and fake.cancelled == ["1"]
    printed = capfd.readouterr()
    assert "SIGINT: this command ends when Slurm has answered for strategy=ddp\n" in printed.err
    assert "cancelled the jobs 1." in printed.err and "1 interrupted, 1 not started" in printed.out


def test_a_signal_while_a_job_is_submitted_leaves_a_note_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    fake = FakeSlurm(monkeypatch, "RUNNING", "COMPLETED")
    fake.signals = signal.SIGTERM
    before = signal.signal(signal.SIGTERM, ended)
    try:
        with pytest.raises(SystemExit):
            slurm_sweep.run_jobs([job(tmp_path)], FAST)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert fake.cancelled == []
    fake.signals = None
    slurm_sweep.run_jobs([job(tmp_path)], FAST)
    assert len(fake.submitted) == 1, "the second call waits for the job of the first"


def test_ctrl_c_waits_for_a_slow_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands themselves, with Slurm's programs replaced."""
    programs = tmp_path / "bin"
    programs.mkdir()
    texts = {
        "sbatch": f"kill -INT {os.getpid()}; sleep 0.5; echo 7",
        "squeue": "",
        "scancel": f'echo "$@" > {tmp_path}/cancelled',
    }
    for name, text in texts.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    with pytest.raises(KeyboardInterrupt):
        slurm_sweep.run_jobs([job(tmp_path)], FAST)
    assert (tmp_path / "cancelled").read_text() == "7\n"


@pytest.mark.parametrize("broken", ["write_atomically", "batch_script"])
def test_an_error_while_jobs_are_submitted_leaves_none_in_the_queue(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeSlurm(monkeypatch)
    works = getattr(slurm_sweep, broken)

    def fails_for_the_second(*arguments: Any) -> Any:
        if "strategy=single" in str(arguments[0]):
            raise OSError("No space left on device")
        return works(*arguments)

    monkeypatch.setattr(slurm_sweep, broken, fails_for_the_second)
    with pytest.raises(OSError, match="No space left"):
        slurm_sweep.run_jobs(two(tmp_path), FAST)
    assert sorted(fake.cancelled) == [str(number + 1) for number in range(len(fake.submitted))]
    assert ("strategy=ddp", None) in fake.submitted


def test_a_queued_job_is_not_submitted_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeSlurm(monkeypatch, "RUNNING", "COMPLETED", "FAILED", "COMPLETED")
    one = job(tmp_path)
    slurm_sweep.run_jobs([one], Slurm(module="m", wait=False))
    assert "1 queued" in capsys.readouterr().out
    slurm_sweep.run_jobs([one], FAST)
    assert len(fake.submitted) == 1, "it runs"
    slurm_sweep.run_jobs([one], FAST)
    assert len(fake.submitted) == 2, "it has failed, and is submitted again"


def test_a_job_with_another_configuration_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeSlurm(monkeypatch, "RUNNING")
    slurm_sweep.run_jobs([job(tmp_path)], Slurm(module="m", wait=False))
    with pytest.raises(
        ValueError, match="which is running with another configuration: wait for it, or `scancel 1`"
    ):
        slurm_sweep.run_jobs([job(tmp_path, workers=4)], FAST)


def test_a_rejected_job_leaves_none_in_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeSlurm(monkeypatch)
    fake.rejects = "strategy=single"
    with pytest.raises(ValueError, match="Slurm rejects strategy=single: invalid partition specified: x"):
        slurm_sweep.run_jobs(two(tmp_path), FAST)
    assert fake.cancelled == ["1"]


def test_the_file_of_the_launcher_has_the_defaults() -> None:
    given = yaml.safe_load((ROOT / "conf/hydra/launcher/submitit_slurm.yaml").read_text())
    assert given.pop("_target_").endswith(".SlurmLauncher")
    assert given == dataclasses.asdict(Slurm())


@pytest.mark.parametrize(
    "script", sorted((ROOT / "scripts/slurm").glob("*.sbatch")), ids=lambda path: path.name
)
def test_scripts_that_users_copy(script: Path) -> None:
    text = script.read_text()
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    assert "#SBATCH --requeue" in text and "hydra.run.dir=" in text and "--kill-on-bad-exit=0" in text


@pytest.mark.parametrize("name", ["kubernetes.yaml", "sky.yaml"])
def test_files_for_other_launchers_are_yaml(name: str) -> None:
    assert isinstance(yaml.safe_load((ROOT / "scripts/slurm" / name).read_text()), dict)
