"""Hosts: found by what workers share, listed, refused where their ranks are mixed; bandwidth between them."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from parallel.config import ClusterConfig
from parallel.results.hosts import Host, hosts_line, require_hosts
from parallel.runtime.communication import hosts
from parallel.runtime.communication.bandwidth import measured
from parallel.runtime.communication.hosts import find_hosts, group_workers
from parallel.runtime.communication.neighbours import neighbours_of
from parallel.runtime.communication.opening import open_world
from tests.support.workers import Workers

CPU = torch.device("cpu")
KERNEL = "boot ipc:[1]"
NETWORK = ("net:[1]", 1000)


def seen(text: str) -> list[list[bool]]:
    """Return what each worker sees: a word of 0 and 1 for each."""
    return [[digit == "1" for digit in word] for word in text.split()]


class TestGroups:
    @pytest.mark.parametrize(
        "sight, groups",
        [
            ("1", [(0,)]),
            ("11 11", [(0, 1)]),
            ("10 01", [(0,), (1,)]),
            ("110 110 001", [(0, 1), (2,)]),
            ("100 011 011", [(0,), (1, 2)]),
            ("11 01", [(0,), (1,)]),  # a folder that only one of them sees is not shared
        ],
    )
    def test_by_files(self, sight: str, groups: list[tuple[int, ...]]) -> None:
        assert group_workers([KERNEL] * len(sight.split()), seen(sight)) == groups

    @pytest.mark.parametrize("other", ["boot ipc:[2]", "later ipc:[1]"])
    def test_a_folder_is_not_enough(self, other: str) -> None:
        """A network file system may show the same files to workers of other kernels and containers."""
        assert group_workers([KERNEL, other], seen("11 11")) == [(0,), (1,)]

    def test_a_kernel_is_not_enough(self) -> None:
        """Virtual machines that were started from one image have the same ids."""
        assert group_workers([KERNEL, KERNEL], seen("10 01")) == [(0,), (1,)]

    def test_ranks_that_alternate_between_hosts(self) -> None:
        with pytest.raises(ValueError, match=r"workers 0, 2 share a host, but .*--distribution=block"):
            group_workers([KERNEL] * 4, seen("1010 0101 1010 0101"))

    def test_sharing_that_is_not_transitive(self) -> None:
        with pytest.raises(ValueError, match="workers 0 and 1 share memory, but not with the same other"):
            group_workers([KERNEL] * 3, seen("110 111 011"))


class TestFind:
    def find(self, folder: Path, monkeypatch: pytest.MonkeyPatch, others: int, same: bool) -> Any:
        """Return the hosts that worker 0 finds; the others see its file or don't."""
        monkeypatch.setattr(hosts, "SHARED_MEMORY", folder)
        calls = []

        def gather(value: Any) -> list[Any]:
            calls.append(value)
            if len(calls) == 1:
                (folder / value[0]).stat()
                mine = list(value)
                for rank in range(1, others + 1):
                    (folder / f"other {rank}").touch() if same else None
                return [value, *([f"other {rank}", *mine[1:]] for rank in range(1, others + 1))]
            return [value, *([True] * (others + 1) if same else [False] for _ in range(others))]

        return find_hosts(0, others + 1, CPU, "gloo", ClusterConfig(threads=3), gather), calls

    def test_shared(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (host,), _ = self.find(tmp_path, monkeypatch, 1, same=True)
        assert host.workers == (0, 1) and host.threads == 3 and host.gpus == ()
        assert host.memory_bytes and (host.cores or 1) >= 1
        assert [path.name for path in tmp_path.iterdir()] == ["other 1"], "the probe is deleted"

    def test_not_shared(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        found, calls = self.find(tmp_path, monkeypatch, 1, same=False)
        assert [host.workers for host in found] == [(0,), (1,)]
        assert calls[1] == (True, False)

    def test_memory_that_cannot_be_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hosts, "_shared_folder", lambda: tmp_path / "none")
        with pytest.raises(ValueError, match="none can't be written .No such file or directory.: workers"):
            find_hosts(0, 2, CPU, "gloo", ClusterConfig(), lambda value: [value])

    def test_a_single_worker_needs_no_probe(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hosts, "_shared_folder", lambda: tmp_path / "none")
        (host,) = find_hosts(0, 1, CPU, "gloo", ClusterConfig(), lambda value: [value])
        assert host.workers == (0,) and host.interface is None


@pytest.mark.parametrize(
    "places, peers",
    [
        ([NETWORK] * 3, {1}),
        ([NETWORK, ("net:[2]", 1000), NETWORK], set()),
        ([NETWORK, ("net:[1]", 0), NETWORK], set()),
        ([None, NETWORK, NETWORK], set()),
        ([None, None, None], set()),
    ],
    ids=["same", "other network", "other user", "not here", "nowhere"],
)
def test_neighbours(places: list[Any], peers: set[int]) -> None:
    assert neighbours_of(0, (0, 1), places) == peers


class TestHost:
    two = (Host(index=0, name="a", workers=(0, 1)), Host(index=1, name="b", workers=(2,)))

    @pytest.mark.parametrize(
        "changes, line",
        [
            ({}, "2 hosts: a (workers 0, 1), b (worker 2)"),
            ({"interface": "eth0"}, "2 hosts: a (workers 0, 1), b (worker 2), over eth0"),
            (
                {"interface": "eth0", "bandwidth": 150e6},
                "2 hosts: a (workers 0, 1), b (worker 2), 1.2 Gbit/s over eth0",
            ),
        ],
    )
    def test_line(self, changes: dict[str, Any], line: str) -> None:
        first, second = (dataclasses.replace(host, **changes) for host in self.two)
        if "bandwidth" in changes:
            first = dataclasses.replace(first, bandwidth=1e9)
        assert hosts_line((first, second)) == line

    @pytest.mark.parametrize(
        "changes, words",
        [
            ({"workers": ()}, "workers=.* must be consecutive"),
            ({"workers": (0, 2)}, "workers=.* must be consecutive"),
            ({"workers": (-1, 0)}, "workers=.* must be consecutive"),
            ({"threads": 0}, "threads=0"),
            ({"cores": 0}, "cores=0"),
            ({"memory_bytes": 0}, "memory_bytes=0"),
            ({"bandwidth": -1.0}, "bandwidth=-1.0"),
            ({"bandwidth": float("inf")}, "bandwidth=inf"),
        ],
    )
    def test_invalid(self, changes: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(self.two[0], **changes)

    def test_hosts_have_all_workers(self) -> None:
        require_hosts(self.two, 3)
        with pytest.raises(ValueError, match=r"hosts=\[0, 1, 2\] must have the workers 0 to 3 in order"):
            require_hosts(self.two, 4)
        with pytest.raises(ValueError, match=r"hosts=\[1, 0\] must be numbered from 0"):
            require_hosts(self.two[::-1], 3)


def observe(folder: str, groups: tuple[int, ...], shared_memory: bool) -> dict[str, Any]:
    """Return what a worker finds whose shared memory is one of the folders."""
    hosts.SHARED_MEMORY = Path(folder) / str(groups[int(os.environ["RANK"])])
    hosts.SHARED_MEMORY.mkdir(exist_ok=True)
    with open_world(ClusterConfig(device="cpu", shared_memory=shared_memory)) as world:
        world = measured(world)
        return {
            "hosts": [dataclasses.asdict(host) for host in world.hosts],
            "own": world.host.index,
            "neighbours": sorted(world.neighbours),
        }


@pytest.mark.parametrize("shared_memory", [True, False], ids=["memory", "network"])
def test_two_hosts_and_one(workers: Workers, tmp_path: Path, shared_memory: bool) -> None:
    """Processes with folders of their own are hosts, whatever else they have in common."""
    answers = workers.run(3, observe, str(tmp_path), (0, 0, 1), shared_memory)
    found = answers[0]["hosts"]
    assert [tuple(host["workers"]) for host in found] == [(0, 1), (2,)]
    assert all(answer["hosts"] == found for answer in answers)
    assert [answer["own"] for answer in answers] == [0, 0, 1]
    connected = shared_memory and sys.platform.startswith("linux")
    assert [answer["neighbours"] for answer in answers] == ([[1], [0], []] if connected else [[], [], []])
    assert all(host["bandwidth"] > 1e6 and host["interface"] for host in found)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_one_host_measures_no_network(workers: Workers, tmp_path: Path) -> None:
    (host,) = workers.run(2, observe, str(tmp_path), (0, 0), True)[0]["hosts"]
    assert tuple(host["workers"]) == (0, 1) and host["bandwidth"] is None
