"""Sweeps with `hydra/launcher=emulated`: a cluster for every job."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from parallel.cli import compose
from parallel.cli.sweep import Torchrun, command
from parallel.emulation.cluster import FOLDER
from parallel.emulation.description import uniform
from tests.support.commands import Run, Start
from tests.support.emulated import holders, interfaces, need_emulation, use_folder
from tests.support.fake_sweeps import JOB, errors, fake, job
from tests.support.waiting import wait_for

SWEEP = ("-m", "strategy=single,ddp", "workers=2", "hydra/launcher=emulated", "sweep=mine")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The variable of the folder of clusters, of which nothing may be left after the test."""
    need_emulation()
    before = interfaces()
    use_folder(tmp_path / "state", monkeypatch)
    yield {FOLDER: os.environ[FOLDER]}
    assert interfaces() == before
    assert holders() == set()
    assert list((tmp_path / "state").glob("*")) == []


def test_choices_of_a_launcher_become_lists() -> None:
    arguments = ["-m", "workers=1,2", "hydra.launcher.rate=1gbit,5gbit", "hydra.launcher.hosts=2"]
    parsed = compose.parse_overrides(arguments[1:])
    assert compose.launcher_lists(arguments, parsed) == [
        "-m",
        "workers=1,2",
        "hydra.launcher.rate=[1gbit,5gbit]",
        "hydra.launcher.hosts=2",
    ]


def test_the_command_of_a_job_makes_its_cluster(tmp_path: Path) -> None:
    cluster = uniform("", 2, "1gbit", None, 1)
    emulated = replace(job(tmp_path, "strategy=ddp", workers=4), cluster=cluster)
    assert command(emulated, Torchrun(module="a.b"))[1:] == [
        "-m",
        "parallel.emulate",
        "run",
        "--hosts=2",
        "--rate=1gbit",
        "--cores=1",
        "--workers-per-host=2,2",
        "--",
        "--max-restarts=0",
        "-m",
        "a.b",
        *emulated.overrides,
    ]
    alone = command(replace(emulated, workers=1), Torchrun(module="a.b"))
    assert "--workers-per-host=1,0" in alone


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["workers=3"], "workers=3 must be a multiple of hydra.launcher.hosts=2"),
        (["workers=2", "hydra.launcher.rate=1gbit,7"], "hydra.launcher.rate=7 must be text with a unit"),
        (["workers=2", "hydra.launcher.hosts=0"], "hydra.launcher.hosts=0 must be at least 1"),
        (["workers=2", "hydra.launcher.delay=50xs"], "hydra.launcher.delay=50xs must be a delay"),
        ([], "workers=None must be set for strategy=ddp with hydra/launcher=emulated"),
    ],
)
def test_invalid_clusters_are_rejected_before_the_first_job(
    arguments: list[str], words: str, folder: dict[str, str], run: Run, tmp_path: Path
) -> None:
    done = run(JOB, "-m", "strategy=ddp", "hydra/launcher=emulated", *arguments, environment=folder)
    assert done.returncode == 2
    assert len(errors(done.stderr)) == 1 and words in done.stderr
    assert list(tmp_path.rglob("started")) == []


@pytest.mark.slow
def test_every_job_runs_in_a_cluster_of_its_own(folder: dict[str, str], run: Run, tmp_path: Path) -> None:
    done = run(JOB, *SWEEP, "hydra.launcher.rate=1gbit,5gbit", environment=folder, real=True)
    assert done.returncode == 0, done.stderr
    found = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.rglob("record.json")}
    assert sorted(found) == [
        f"strategy={strategy},hosts=2,rate={rate}"
        for strategy in ("ddp", "single")
        for rate in ("1gbit", "5gbit")
    ]
    again = run(JOB, *SWEEP, "hydra.launcher.rate=1gbit,5gbit", environment=folder, real=True)
    assert again.stdout.count("already finished") == 4
    workers = {name: record["workers"] for name, record in found.items()}
    assert workers == {name: 1 if name.startswith("strategy=single") else 2 for name in found}


@pytest.mark.slow
@pytest.mark.parametrize("sign, code", [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_stopped_sweep_leaves_no_cluster(
    sign: signal.Signals, code: int, folder: dict[str, str], start: Start, tmp_path: Path
) -> None:
    sweep = start(
        JOB,
        *(word.replace("single,", "") for word in SWEEP),
        environment=fake(ddp="sleep") | folder,
        real=True,
    )
    wait_for(lambda: len(list(tmp_path.rglob("pid-*"))) >= 2 or sweep.poll() is not None)
    assert sweep.poll() is None
    sweep.send_signal(sign)
    sweep.communicate(timeout=60)
    assert sweep.returncode == code
    wait_for(lambda: holders() == set() and not list((tmp_path / "state").glob("*")), 60)
