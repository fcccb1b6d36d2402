"""A rendezvous for torchrun that listens on one address and unpickles nothing.

torchrun has two of its own. The dynamic one (`--standalone`, `--rdzv-backend=c10d`) keeps its state
in the store as a pickle, so that whoever can write to the store can execute code on every host. The
static one does not, but its store listens on all interfaces, and on a port that must be free. This
one is static as well: hosts have fixed numbers, host 0 serves the store at the endpoint, and after a
failure of the workers the same hosts meet again. On one host the kernel chooses a free port.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import NoReturn

from torch.distributed import PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)

from parallel.config.stderr import print_to_stderr
from parallel.runtime.communication.bound_store import CONNECT_S, connect_store, serve_store
from parallel.runtime.communication.interface import LOOPBACK
from parallel.runtime.failure.in_time import NoAnswer, call_in_time
from parallel.runtime.failure.running_clock import RunningClock

BACKEND = "bound"
TIMEOUT_S = 900
"""Time in which all hosts must join, unless `--rdzv-conf=timeout=…` says otherwise; as torchrun's."""
AGAIN_S = 90.0
"""Time in which all hosts must meet again after a failure of the workers, if that of `TIMEOUT_S` is
not shorter. Hosts notice a failure at different times: workers that do not watch each other yet
wait 65 s for one that has died, see `Ranks`."""
ANSWER_S = 5.0
"""Time after which a store that does not answer is named."""
GONE = "that host is gone, or cut off from this one"
SAID_S = 5.0
"""Interval at which a host says for whom it still waits: a wrong address looks like a host that is late."""
POLL_S = 0.05
LEAVING_S = 5.0
"""Time that host 0 keeps the store at the end, for hosts that still read from it."""


class BoundRendezvous(RendezvousHandler):
    """One host's part of the rendezvous."""

    def __init__(self, host: str, port: int, rank: int, hosts: int, run_id: str, timeout: timedelta) -> None:
        """Raises `ValueError` if several hosts can't meet at this address."""
        if hosts > 1 and port == 0:
            raise ValueError(f"--master-port=0 must be a port that all {hosts} hosts know")
        if not 0 <= rank < hosts:
            raise ValueError(f"--node-rank={rank} must be at least 0 and below --nnodes={hosts}")
        self._host, self._port, self._rank, self._hosts = host, port, rank, hosts
        self._run_id, self._timeout = run_id, timeout
        self._store: TCPStore | None = None
        self._attempt = 0
        self._silent = False

    def get_backend(self) -> str:
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        return True  # workers connect to the store that is there already

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait for all hosts; after a failure of the workers, for all of them again.

        Ends the process with one sentence if they don't meet: with exit code 2 at the start, when the
        arguments may be wrong, and with 1 after a failure, when a host is lost.
        """
        limit, code, key = self._timeout.total_seconds(), 2, " (--rdzv-conf=timeout=…)"
        if self._attempt > 0:
            limit, code, key = min(limit, AGAIN_S), 1, ""
        wait = _Wait(self._rank, limit, self._awaited_store(), key)
        try:
            # The last try to connect may begin at the limit, and takes `CONNECT_S`.
            self._store = call_in_time(lambda: self._meet(wait), limit + CONNECT_S + ANSWER_S, wait.look)
        except ValueError as error:
            _end(str(error), code)
        except RuntimeError:  # from the store
            _end(f"node rank 0 at {self._host}:{self._port} is gone", code)
        except NoAnswer:
            self._silent = True
            _end(f"{self._awaited_store()} has not answered: {GONE}", code)
        self._attempt += 1
        return RendezvousInfo(
            PrefixStore(self._run_id, self._store),
            self._rank,
            self._hosts,
            RendezvousStoreInfo(self._host, self._store.port),
        )

    def _meet(self, wait: _Wait) -> TCPStore:
        """Return the store when all hosts have come to this attempt. Raises `ValueError` if one does not."""
        store = self._open(wait) if self._store is None else self._store
        keys = [f"parallel/host/{self._attempt}/{rank}" for rank in range(self._hosts)]
        if store.add(keys[self._rank], 1) > 1:
            raise ValueError(f"--node-rank={self._rank} is given to two hosts of this run")
        while missing := [rank for rank, key in enumerate(keys) if not store.check([key])]:
            absent = f"node rank {', '.join(map(str, missing))} of {self._hosts}"
            left = [str(rank) for rank in missing if store.check([f"parallel/left/{rank}"])]
            if left:
                raise ValueError(
                    f"node rank {', '.join(left)} of {self._hosts} has ended, so that the workers can't start again"
                )
            if wait.is_over():
                within = f"within {wait.limit:g} s"
                raise ValueError(
                    f"{absent} has not joined {within}"
                    if self._attempt == 0
                    else f"{absent} has not come back {within} of the failure: {GONE}"
                )
            wait.has_answer(absent)
            time.sleep(POLL_S)
        return store

    def _open(self, wait: _Wait) -> TCPStore:
        if self._rank == 0:
            return serve_store(self._host, self._port, self._timeout, for_others=self._hosts > 1)
        return connect_store(self._host, self._port, self._timeout, wait.has_answer)

    def _awaited_store(self) -> str:
        return f"the store of node rank 0 at {self._host}:{self._port}"

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Do nothing: a static rendezvous ends with its processes."""

    def num_nodes_waiting(self) -> int:
        return 0  # no host joins later

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        """Host 0 keeps the store until the others have left, at most `LEAVING_S`."""
        store = self._store
        if store is None or self._silent:
            return True

        def leave() -> None:
            deadline = time.monotonic() + LEAVING_S
            store.set(f"parallel/left/{self._rank}", "")
            keys = [f"parallel/left/{rank}" for rank in range(self._hosts)]
            while self._rank == 0 and not store.check(keys) and time.monotonic() < deadline:
                time.sleep(POLL_S)

        try:
            call_in_time(leave, LEAVING_S + ANSWER_S)
        except (RuntimeError, NoAnswer):  # the store is gone, and nothing is left to close
            return False
        return True


class _Wait:
    """A host's wait for others: its limit, and what it says meanwhile.

    One thread asks the store, which may not answer, and another calls `look`.
    """

    def __init__(self, rank: int, limit: float, store: str, key: str) -> None:
        """`key`: what changes the limit."""
        self.limit = limit
        self._rank, self._store, self._key = rank, store, key
        self._now = RunningClock()
        self._start = self._said = self._answered = self._now()
        self._absent = store

    def is_over(self) -> bool:
        return self._now() - self._start > self.limit

    def has_answer(self, absent: str) -> None:
        """Note for whom the host waits, from the store's answer."""
        self._absent, self._answered = absent, self._now()

    def look(self) -> None:
        """Print what this host waits for, at most once in `SAID_S`."""
        now = self._now()
        if now - self._said >= SAID_S:
            self._said = now
            absent = self._absent if now - self._answered < ANSWER_S else self._store
            print_to_stderr(
                f"node rank {self._rank} has waited {now - self._start:.0f} s for {absent}, of at most "
                f"{self.limit:g} s{self._key}"
            )


def create_handler(parameters: RendezvousParameters) -> RendezvousHandler:
    """Return the handler that torchrun's arguments describe. Ends the process for invalid ones."""
    try:
        if parameters.min_nodes != parameters.max_nodes:
            raise ValueError(
                f"--nnodes={parameters.min_nodes}:{parameters.max_nodes} must be one number: only "
                "torch's own torchrun, with --rdzv-backend=c10d, goes on with fewer hosts, see docs/security.md"
            )
        host, port = _endpoint(parameters.endpoint or LOOPBACK)
        rank = parameters.get_as_int("rank", 0) or 0
        timeout = timedelta(seconds=parameters.get_as_int("timeout", TIMEOUT_S) or TIMEOUT_S)
        return BoundRendezvous(host, port, rank, parameters.max_nodes, parameters.run_id, timeout)
    except ValueError as error:
        _end(str(error))


def _endpoint(text: str) -> tuple[str, int]:
    """Return host and port of `host`, `host:port` or `[address]:port`."""
    if text.count(":") > 1 and not text.startswith("["):
        return text, 0  # an IPv6 address
    host, _, port = text.rpartition(":") if not text.endswith("]") and ":" in text else (text, "", "0")
    if not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"--rdzv-endpoint={text} must be host:port with a port from 0 to 65535")
    return host.strip("[]"), int(port)


def _end(sentence: str, code: int = 2) -> NoReturn:
    print_to_stderr(f"error: {sentence}")
    raise SystemExit(code)
