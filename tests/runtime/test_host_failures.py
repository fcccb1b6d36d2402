"""A host that is lost is named by the workers of the other hosts, and both sides end; in an emulated
cluster."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from parallel.emulation.cluster import FOLDER, Cluster, temporary
from parallel.emulation.description import uniform
from parallel.emulation.holders import processes_of
from tests.support.altered_runs import ALTERED, SMALL, epochs
from tests.support.commands import Start
from tests.support.emulated import need_emulation, use_folder
from tests.support.waiting import wait_for

FIRST = (
    r"the store at 10\.77\.0\.1:29500 does not answer \(.*\), so that host 0 \(host0, worker 0\), "
    "or its launcher, is gone"
)
ON_LOOPBACK = """
import os, runpy
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
runpy.run_module("tests.support.fake_job", run_name="__main__", alter_sys=True)
"""
SECOND = r"host 1 \(host1, workers 1, 2\) {}: no sign of life for \d+\.\d s, the last one in "


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    need_emulation()
    name = use_folder(tmp_path / "state", monkeypatch)
    with temporary(uniform("", 2, "1gbit", None, 1, name)) as made:
        yield made


def fail(cluster: Cluster, what: str, host: int) -> None:
    if what == "cut":
        cluster.link(host, up=False)
    else:
        cluster.signal(host, what)


def training(cluster: Cluster, start: Start, tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    """Start a run with one worker on host 0 and two on host 1; return it when it trains."""
    process = start(
        "parallel.emulate",
        "run",
        f"--name={cluster.description.name}",
        "--workers-per-host=1,2",
        "--",
        *options,
        "-m",
        ALTERED,
        *SMALL,
        "trainer.epochs=100000",
        "cluster.timeout_s=8",  # three workers and other tests share the cores: heartbeats may be late
        environment={FOLDER: os.environ[FOLDER]},
        real=True,
    )
    wait_for(lambda: epochs(tmp_path) > 2 or process.poll() is not None, 400)
    assert process.poll() is None, process.communicate()[1]
    return process


@pytest.mark.parametrize(
    "what, host, named",
    [
        pytest.param("cut", 1, {0: SECOND.format("does not answer"), 1: FIRST, 2: FIRST}),
        pytest.param("kill", 1, {0: SECOND.format("(is gone|does not answer)")}, marks=pytest.mark.slow),
        pytest.param("kill", 0, {1: FIRST, 2: FIRST}, marks=pytest.mark.slow),
        pytest.param("stop", 1, {0: SECOND.format("does not answer")}, marks=pytest.mark.slow),
        pytest.param("stop", 0, {1: FIRST, 2: FIRST}, marks=pytest.mark.slow),
    ],
)
def test_a_lost_host_is_named(
    what: str, host: int, named: dict[int, str], cluster: Cluster, start: Start, tmp_path: Path
) -> None:
    process = training(cluster, start, tmp_path)
    fail(cluster, what, host)
    other = cluster.hosts[1 - host]
    wait_for(lambda: processes_of(other) == [], 60)
    if what == "stop":
        cluster.signal(host, "continue")  # these end, too, once they find that they are alone
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    for rank, words in named.items():
        assert re.search(rf"^(host1: )?error: worker {rank} ends in .*: {words}", err, re.M), err
    assert [processes_of(holder) for holder in cluster.hosts] == [[], []]
    assert list(tmp_path.rglob("record.json")) == []


@pytest.mark.slow
def test_both_sides_of_a_cut_link_end_if_they_may_start_again(
    cluster: Cluster, start: Start, tmp_path: Path
) -> None:
    process = training(cluster, start, tmp_path, "--max-restarts=1", "--rdzv-conf=timeout=40")
    cluster.link(1, up=False)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 1, out + err
    assert "\nerror: node rank 1 of 2 has not come back within 40 s of the failure: " in err
    assert "\nhost1: error: the store of node rank 0 at 10.77.0.1:29500 has not answered: " in err
    assert "is killed" not in err, "each host ends by itself"


def test_hosts_that_listen_on_their_loopback_are_refused(
    cluster: Cluster, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "on_loopback.py").write_text(ON_LOOPBACK)
    process = start(
        "parallel.emulate",
        "run",
        f"--name={cluster.description.name}",
        "--workers-per-host=1,2",
        "--",
        str(tmp_path / "on_loopback.py"),
        "strategy=ddp",
        environment={FOLDER: os.environ[FOLDER]},
        real=True,
    )
    _, err = process.communicate(timeout=400)
    assert process.returncode == 2, err
    said = (
        "error: host host0 (worker 0) listens on lo, address 127.0.0.1, where host host1 (workers 1, 2) can't "
        "reach it: GLOO_SOCKET_IFNAME must name an interface of the network between them"
    )
    lines = [line for line in err.splitlines() if "error: " in line]
    assert sorted(lines) == [said, f"host1: {said}"], err
