"""A host that is lost is named by the workers of the other hosts, and both sides end; in an emulated
cluster."""

from __future__ import annotations

import os
import re
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
    process = start(
        "parallel.emulate",
        "run",
        f"--name={cluster.description.name}",
        "--workers-per-host=1,2",
        "--",
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
