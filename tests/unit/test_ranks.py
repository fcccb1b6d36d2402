"""Ranks that wait for others: for how long, and how they name those that are late or have failed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import TCPStore

from parallel.cli.agreement import agree
from parallel.cli.compose import compose_config
from parallel.cli.ranked import run_ranked
from parallel.cli.ranks import START_S, Ranks
from parallel.runtime.communication.bound_store import serve_store
from parallel.runtime.failure.errors import RunEnded
from parallel.runtime.failure.host_names import describe_workers, host_name
from tests.support.waiting import free_port

HERE = host_name()


@pytest.fixture
def address() -> Iterator[dict[str, str]]:
    """The variables of a worker whose launcher has a store."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "LOCAL_RANK": "0",
    }


def on_host(address: dict[str, str], number: int) -> dict[str, str]:
    return {**address, "GROUP_RANK": str(number), "LOCAL_WORLD_SIZE": "2"}


def test_hosts_that_are_late_are_named(address: dict[str, str]) -> None:
    Ranks(2, 6, True, on_host(address, 1)).call(lambda store: None)  # it has reached the store, and no more
    Ranks(1, 6, True, on_host(address, 0)).call(lambda store: store.set("what/1", ""))
    first = Ranks(0, 6, True, on_host(address, 0), limit_s=0.1)
    late = f"host 1 ({HERE}, workers 2, 3) and host 2 (workers 4, 5)"
    with pytest.raises(ValueError) as error:
        first.collect("what", "")
    assert (
        str(error.value) == f"waited 0.1 s for the start of {late}; a larger cluster.timeout_s waits longer"
    )
    other = Ranks(2, 6, True, on_host(address, 1), limit_s=0.1)
    with pytest.raises(ValueError, match=rf"^waited 5.1 s for run_dir from host 0 \({HERE}, worker 0\); "):
        other.share("run_dir", lambda: "")


class Interrupted:
    """A store in which another rank comes in between, before `set`."""

    def __init__(self, store: Any, other: Callable[[], None]) -> None:
        self._store, self._other = store, other

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def set(self, key: str, value: str) -> None:
        self._other()
        self._store.set(key, value)


def test_the_rank_that_speaks_for_a_host_is_not_ended_before(
    address: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun ends it when the other one exits: here one that failed first, and was overtaken."""
    first, second = (Ranks(rank, 2, True, on_host(address, 0)) for rank in (0, 1))
    slept: list[float] = []
    speaks: list[bool] = []
    monkeypatch.setattr("parallel.cli.ranks.time.sleep", slept.append)
    first._store = Interrupted(first._join(), lambda: speaks.append(second.report("x", "", invalid=True)))  # type: ignore[assignment]
    speaks.append(first.report("x", "", invalid=True))
    assert speaks == [True, False] and 0 < 2 * slept[0] <= slept[1]


def test_a_store_that_comes_late_does_not_count_as_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parallel.cli.ranks.ANSWER_S", 0.1)
    port, stores = free_port(), []
    serve = threading.Timer(1.0, lambda: stores.append(serve_store("127.0.0.1", port, timedelta(seconds=9))))
    serve.start()
    ranks = Ranks(1, 2, True, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}, limit_s=1.5)
    with pytest.raises(ValueError, match="^waited 1.6 s for run_dir from worker 0; "):
        ranks.share("run_dir", lambda: "")
    serve.join()


def test_workers_are_named_by_host_where_it_is_known() -> None:
    hosts = {0: "0 a", 1: "", 2: "1 b", 3: "", 4: "", 5: ""}
    assert describe_workers([1], hosts, 2) == "host 0 (a, worker 1)"
    assert describe_workers([2, 3], hosts, 2) == "host 1 (b, workers 2, 3)"
    assert describe_workers([3, 4, 5], hosts, 2) == "host 1 (b, worker 3) and host 2 (workers 4, 5)"
    assert describe_workers([2, 4, 5], hosts, 0) == "host 1 (b, worker 2) and workers 4, 5"
    assert describe_workers([1], {0: "a", 1: "a"}, 0) == "host a (worker 1)"


def test_the_configuration_lengthens_the_wait_for_a_slow_start(address: dict[str, str]) -> None:
    ranks = Ranks(0, 2, True, address)
    ranks.allow(5.0)
    assert ranks.limit_s == START_S
    ranks.allow(300.0)
    assert ranks.limit_s == 300.0
    config = compose_config(["workers=2", "cluster.timeout_s=0.3"])
    with pytest.raises(ValueError, match="^waited 0.3 s for the start of worker 1; "):
        agree(Ranks(0, 2, True, address, limit_s=0.1), config)


def test_a_rank_that_failed_is_named_by_those_that_wait_for_it(address: dict[str, str]) -> None:
    Ranks(2, 3, True, on_host(address, 1)).report("x=1 must be 2", "", invalid=True)
    with pytest.raises(ValueError, match=rf"^host 1 \({HERE}, worker 2\): x=1 must be 2$"):
        Ranks(0, 3, True, on_host(address, 0)).collect("what", "")
    with pytest.raises(ValueError, match="^x=1 must be 2$"):
        Ranks(1, 3, True, on_host(address, 1)).share("what", lambda: "")


def test_a_crash_is_no_invalid_input_of_those_that_wait(address: dict[str, str]) -> None:
    Ranks(1, 2, True, on_host(address, 1)).report("RuntimeError: boom", "")
    with pytest.raises(RunEnded, match=rf"^host 1 \({HERE}, worker 1\): RuntimeError: boom$"):
        Ranks(0, 2, True, on_host(address, 0)).collect("what", "")


def test_a_file_that_cannot_be_read_is_invalid_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def body(ranks: Ranks) -> None:
        (tmp_path / "none").read_text()

    with pytest.raises(SystemExit) as ended:
        run_ranked(body)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/none: No such file or directory\n"


def test_a_failed_connection_is_a_crash(capsys: pytest.CaptureFixture[str]) -> None:
    def body(ranks: Ranks) -> None:
        raise ConnectionResetError(104, "Connection reset by peer")

    with pytest.raises(SystemExit) as ended:
        run_ranked(body)
    assert ended.value.code == 1 and "Traceback" in capsys.readouterr().err


def test_every_rank_learns_that_rank_0_cannot_write(address: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Ranks(0, 2, True, address).share("what", lambda: (tmp_path / "none").read_text())
    with pytest.raises(ValueError, match=f"^{tmp_path}/none: No such file or directory$"):
        Ranks(1, 2, True, address).share("what", lambda: "")
