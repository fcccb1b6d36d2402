"""The rendezvous of parallel.torchrun: it listens where it is told to, and says who is missing."""

from __future__ import annotations

import socket
import threading
from datetime import timedelta
from typing import Any

import psutil
import pytest
from torch.distributed.elastic.rendezvous import RendezvousParameters

from parallel.runtime.communication import bound_rendezvous, bound_store
from parallel.runtime.communication.bound_rendezvous import BoundRendezvous, create_handler
from parallel.runtime.communication.bound_store import connect_store, serve_store
from parallel.runtime.communication.interface import LOOPBACK

SHORT = timedelta(seconds=5)


def addresses_of(port: int) -> set[str]:
    """Return the addresses on which this process listens on a port."""
    every = psutil.Process().net_connections("tcp")
    return {one.laddr.ip for one in every if one.status == psutil.CONN_LISTEN and one.laddr.port == port}


def free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as server:
        return int(server.getsockname()[1])


def host(rank: int, hosts: int, port: int, timeout: timedelta = SHORT) -> BoundRendezvous:
    return BoundRendezvous(LOOPBACK, port, rank, hosts, "run", timeout)


def test_the_store_listens_on_its_address_alone() -> None:
    store = serve_store(LOOPBACK, 0, SHORT)
    assert addresses_of(store.port) == {LOOPBACK}
    connect_store(LOOPBACK, store.port, SHORT).set("key", "value")
    assert store.get("key") == b"value"


def test_two_runs_on_one_host_have_ports_of_their_own() -> None:
    runs = [host(0, 1, 0).next_rendezvous().bootstrap_store_info for _ in range(2)]
    assert len({run.master_port for run in runs if run is not None}) == 2


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("192.0.2.77", "--master-addr=192.0.2.77 is not an address of this host"),
        ("no.invalid", "can't be found"),
    ],
)
def test_addresses_that_cannot_be_listened_on(address: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        serve_store(address, 0, SHORT)


def test_a_port_in_use_is_named() -> None:
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} of {LOOPBACK} is in use by another program"):
            serve_store(LOOPBACK, port, SHORT)


def test_a_name_that_only_this_host_knows_as_itself_is_refused_for_others(monkeypatch: Any) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.1.1", 29500))]
    monkeypatch.setattr(bound_store.socket, "getaddrinfo", lambda *args, **kwargs: found)
    with pytest.raises(
        ValueError, match="--master-addr=node0 is 127.0.1.1 on this host, which no other host reaches"
    ):
        serve_store("node0", 29500, SHORT, for_others=True)


def test_hosts_meet_and_meet_again_after_a_restart() -> None:
    port = free_port()
    hosts = [host(rank, 2, port) for rank in range(2)]
    met: dict[int, Any] = {}

    def meet(rank: int) -> None:
        met[rank] = hosts[rank].next_rendezvous()

    for _ in range(2):
        threads = [threading.Thread(target=meet, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert [(met[rank].rank, met[rank].world_size) for rank in range(2)] == [(0, 2), (1, 2)]
    met[0].store.set("key", "value")
    assert met[1].store.get("key") == b"value"
    assert {met[rank].bootstrap_store_info.master_port for rank in range(2)} == {port}
    assert hosts[1].shutdown() and hosts[0].shutdown()


def meet(hosts: list[BoundRendezvous]) -> None:
    threads = [threading.Thread(target=one.next_rendezvous) for one in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)


@pytest.mark.parametrize(("rank", "other"), [(0, 1), (1, 0)])
def test_a_host_that_does_not_come_back_is_named(
    rank: int, other: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    port = free_port()
    hosts = [host(rank, 2, port) for rank in range(2)]
    meet(hosts)
    capsys.readouterr()
    monkeypatch.setattr(bound_rendezvous, "AGAIN_S", 0.3)
    monkeypatch.setattr(bound_rendezvous, "SAID_S", 0.1)
    with pytest.raises(SystemExit) as ended:
        hosts[rank].next_rendezvous()
    assert ended.value.code == 1, "the input is valid"
    *said, error = capsys.readouterr().err.splitlines()
    assert error == (
        f"error: node rank {other} of 2 has not come back within 0.3 s of the failure: that host is gone, or cut off "
        "from this one"
    )
    assert said[0].startswith(f"node rank {rank} has waited 0 s for node rank {other} of 2, of at most 0.3 s")


def test_a_short_timeout_holds_after_a_failure_as_well(capsys: Any) -> None:
    port, short = free_port(), timedelta(seconds=1)
    hosts = [host(rank, 2, port, short) for rank in range(2)]
    meet(hosts)
    with pytest.raises(SystemExit):
        hosts[0].next_rendezvous()
    assert "has not come back within 1 s" in capsys.readouterr().err


def test_a_host_that_has_ended_is_not_waited_for(capsys: Any) -> None:
    port = free_port()
    hosts = [host(rank, 2, port) for rank in range(2)]
    meet(hosts)
    assert hosts[1].shutdown()
    with pytest.raises(SystemExit) as ended:
        hosts[0].next_rendezvous()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("error: node rank 1 of 2 has ended, so that the")


def test_a_store_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A client of torch's store blocks while the store's machine is cut off."""
    port, cut = free_port(), threading.Event()
    hosts = [host(rank, 2, port) for rank in range(2)]
    meet(hosts)
    capsys.readouterr()
    for name, seconds in {"AGAIN_S": 0.2, "CONNECT_S": 0.1, "ANSWER_S": 0.2, "SAID_S": 0.1}.items():
        monkeypatch.setattr(bound_rendezvous, name, seconds)

    class Blocked:
        def add(self, key: str, value: int) -> int:
            cut.wait()
            return value

    hosts[1]._store = Blocked()  # type: ignore[assignment]
    try:
        with pytest.raises(SystemExit) as ended:
            hosts[1].next_rendezvous()
        assert ended.value.code == 1
        said = capsys.readouterr().err.splitlines()
        store = f"the store of node rank 0 at {LOOPBACK}:{port}"
        assert f"for {store}, of at most 0.2 s" in said[0]
        assert said[-1] == f"error: {store} has not answered: that host is gone, or cut off from this one"
        assert hosts[1].shutdown(), "which asks the store nothing"
    finally:
        cut.set()


def test_a_store_that_is_gone_at_the_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"LEAVING_S": 0.1, "ANSWER_S": 0.1}.items():
        monkeypatch.setattr(bound_rendezvous, name, seconds)
    cut = threading.Event()

    class Blocked:
        def set(self, key: str, value: str) -> None:
            cut.wait()

    one = host(1, 2, 1)
    one._store = Blocked()  # type: ignore[assignment]
    try:
        assert not one.shutdown()
    finally:
        cut.set()


def test_a_host_that_is_missing_is_named(capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        host(0, 3, free_port(), timedelta(seconds=0.2)).next_rendezvous()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: node rank 1, 2 of 3 has not joined within 0.2 s\n"


@pytest.mark.parametrize(("rank", "absent"), [(0, "node rank 1, 2 of 3"), (1, "the store of rank 0 at 127")])
def test_a_host_says_for_whom_it_waits(
    rank: int, absent: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(bound_rendezvous, "SAID_S", 0.2)
    with pytest.raises(SystemExit):
        host(rank, 3, free_port(), timedelta(seconds=0.5)).next_rendezvous()
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"node rank {rank} has waited 0 s for {absent}")
    assert 2 <= len(said) <= 3


def test_a_host_that_finds_no_store_says_where_it_looked(capsys: Any) -> None:
    port = free_port()
    with pytest.raises(SystemExit):
        host(1, 2, port, timedelta(seconds=0.2)).next_rendezvous()
    assert f"can't be reached at {LOOPBACK}:{port} within 0.2 s" in capsys.readouterr().err


def test_a_rank_given_twice_is_refused(capsys: Any) -> None:
    port = free_port()
    one = timedelta(seconds=1)
    hosts = [host(rank, 3, port, one) for rank in (0, 1)]
    threads = [
        threading.Thread(target=lambda own=own: pytest.raises(SystemExit, own.next_rendezvous))
        for own in hosts
    ]
    for thread in threads:
        thread.start()
    connect_store(LOOPBACK, port, SHORT).wait(["parallel/host/0/1"], SHORT)
    with pytest.raises(SystemExit):
        host(1, 3, port, one).next_rendezvous()
    assert "--node-rank=1 is given to two hosts of this run" in capsys.readouterr().err
    for thread in threads:
        thread.join(20)


@pytest.mark.parametrize(
    ("endpoint", "nodes", "settings", "words"),
    [
        ("", (1, 2), {}, "--nnodes=1:2 must be one number"),
        ("", (2, 2), {}, "--master-port=0 must be a port that all 2 hosts know"),
        ("a:29500", (2, 2), {"rank": "2"}, "--node-rank=2 must be at least 0 and below --nnodes=2"),
        ("a:x", (1, 1), {}, "--rdzv-endpoint=a:x must be host:port"),
        ("a:70000", (1, 1), {}, "--rdzv-endpoint=a:70000 must be host:port"),
        ("a:1", (2, 2), {"rank": "one"}, "'rank' does not represent a valid integer"),
    ],
)
def test_arguments_that_cannot_be(
    endpoint: str, nodes: tuple[int, int], settings: dict[str, str], words: str, capsys: Any
) -> None:
    with pytest.raises(SystemExit) as ended:
        create_handler(RendezvousParameters("bound", endpoint, "run", *nodes, **settings))
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("endpoint", "host_and_port"),
    [
        ("a:1", ("a", 1)),
        ("a", ("a", 0)),
        ("::1", ("::1", 0)),
        ("[::1]:29500", ("::1", 29500)),
        ("[::1]", ("::1", 0)),
        ("127.0.0.1:0", (LOOPBACK, 0)),
    ],
)
def test_endpoints(endpoint: str, host_and_port: tuple[str, int]) -> None:
    assert bound_rendezvous._endpoint(endpoint) == host_and_port
