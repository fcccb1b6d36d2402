"""Launchers on loopback that pretend to be hosts: where they listen, and which of them is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parallel.runtime.communication.interface import interface_towards
from tests.support.commands import Run, Start
from tests.support.waiting import free_port

JOB = "tests.support.fake_job"


def test_a_run_on_one_host_listens_on_the_loopback_alone(torchrun: Run) -> None:
    done = torchrun(2, "tests.support.listening", real=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "launcher": ["127.0.0.1"],
        "workers": [["127.0.0.1"], ["127.0.0.1"]],
        "interface": interface_towards("127.0.0.1"),
    }


def test_a_host_with_other_settings_is_refused_on_every_host(start: Start, tmp_path: Path) -> None:
    port = free_port()
    hosts = [
        start(
            "parallel.torchrun",
            "--nnodes=2",
            f"--node-rank={rank}",
            "--nproc-per-node=1",
            f"--master-port={port}",
            "-m",
            JOB,
            "strategy=ddp",
            f"trainer.lr=0.{rank + 1}",
        )
        for rank in range(2)
    ]
    for host in hosts:
        _, err = host.communicate(timeout=300)
        assert host.returncode == 2
        assert (
            err.count("(worker 1) has other settings than host") == 1
            and "trainer.lr is 0.2 there and 0.1 here" in err
        )
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_launcher_that_unpickles_gives_a_warning(run: Run) -> None:
    done = run("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", JOB, "strategy=ddp")
    assert done.returncode == 0, done.stderr
    (warning,) = [line for line in done.stderr.splitlines() if line.startswith("warning:")]
    assert "executes what anybody sends" in warning and "docs/security.md" in warning
