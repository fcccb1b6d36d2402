"""Launchers on loopback that pretend to be hosts: where they listen, and which of them is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from parallel.results.run_lock import locked
from parallel.runtime.communication.interface import interface_towards
from parallel.runtime.failure.host_names import host_name
from tests.support.commands import Run, Start
from tests.support.waiting import free_port

JOB = "tests.support.fake_job"
NOT_WRITABLE = "/sys/kernel"
"""A folder in which nobody, not even root, can create a file."""


def test_a_run_on_one_host_listens_on_the_loopback_alone(torchrun: Run) -> None:
    done = torchrun(2, "tests.support.listening", real=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "launcher": ["127.0.0.1"],
        "workers": [["127.0.0.1"], ["127.0.0.1"]],
        "interface": interface_towards("127.0.0.1"),
    }


def refused(
    start: Start, module: str, *arguments: list[str], environment: Mapping[str, str] | None = None
) -> list[str]:
    """Start a host with one worker for each of `arguments`; return what each says when it ends with exit code 2."""
    port = free_port()
    launchers = [
        start(
            "parallel.torchrun",
            f"--nnodes={len(arguments)}",
            f"--node-rank={rank}",
            "--nproc-per-node=1",
            f"--master-port={port}",
            "-m",
            module,
            *own,
            environment=environment,
        )
        for rank, own in enumerate(arguments)
    ]
    errors = []
    for launcher in launchers:
        _, err = launcher.communicate(timeout=300)
        assert launcher.returncode == 2, err
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in err
        errors.append(line.removeprefix("error: "))
    return errors


def test_a_host_with_other_settings_is_refused_on_every_host(start: Start, tmp_path: Path) -> None:
    for error in refused(start, JOB, *(["strategy=ddp", f"trainer.lr=0.{rank + 1}"] for rank in range(2))):
        assert error.count("(worker 1) has other settings than host") == 1
        assert "trainer.lr is 0.2 there and 0.1 here" in error
    assert not (tmp_path / "runs").exists()


def test_a_host_that_cannot_compose_its_configuration_is_named_by_the_other(start: Start) -> None:
    first, second = refused(start, JOB, ["strategy=ddp"], ["strategy=nope"])
    assert second.startswith("strategy=nope is not known; it must be one of ")
    assert first == f"host 1 ({host_name()}, worker 1): {second}"


def test_a_run_directory_in_use_is_refused_on_every_host(start: Start, tmp_path: Path) -> None:
    with locked(tmp_path / "one"):
        errors = refused(start, JOB, *2 * [["strategy=ddp", "hydra.run.dir=one"]])
    assert errors[0] == errors[1] and "one must not be written by two runs: process " in errors[0]


def test_a_run_directory_that_cannot_be_written_is_refused_on_every_host(start: Start) -> None:
    errors = refused(start, JOB, *2 * [["strategy=ddp", f"hydra.run.dir={NOT_WRITABLE}"]])
    assert errors[0] == errors[1] and errors[0].startswith(f"hydra.run.dir={NOT_WRITABLE} can't be written: ")


def test_a_host_that_rejects_its_input_later_is_named_by_the_other(start: Start) -> None:
    """Worker 1 cannot write to its shared memory, which it finds out in the process group."""
    first, second = refused(
        start, "tests.support.altered_training", *2 * [["strategy=ddp"]], environment={"ALTER": "probe"}
    )
    assert second.startswith(f"{NOT_WRITABLE} can't be written (") and second.endswith(
        "who shares their memory"
    )
    assert first == f"host 1 ({host_name()}, worker 1): {second}"


@pytest.mark.slow
def test_a_launcher_that_unpickles_gives_a_warning(run: Run) -> None:
    done = run("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", JOB, "strategy=ddp")
    assert done.returncode == 0, done.stderr
    (warning,) = [line for line in done.stderr.splitlines() if line.startswith("warning:")]
    assert "executes what anybody sends" in warning and "docs/security.md" in warning
