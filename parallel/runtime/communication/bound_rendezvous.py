"""A rendezvous for torchrun that listens on one address and unpickles nothing.

torchrun has two of its own. The dynamic one (`--standalone`, `--rdzv-backend=c10d`) keeps its state
in the store as a pickle, so that whoever can write to the store can execute code on every host. The
static one does not, but its store listens on all interfaces, and on a port that must be free. This
one is static as well: hosts have fixed numbers, host 0 serves the store at the endpoint, and a
restart of the workers finds the same hosts. On one host the kernel chooses a free port.
"""

from __future__ import annotations

import time
from collections.abc import Callable
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
from parallel.runtime.communication.bound_store import connect_store, serve_store
from parallel.runtime.communication.interface import LOOPBACK

BACKEND = "bound"
TIMEOUT_S = 900
"""Time in which all hosts must join, unless `--rdzv-conf=timeout=…` says otherwise; as torchrun's."""
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

    def get_backend(self) -> str:
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        return True  # workers connect to the store that is there already

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait for all hosts. Later calls, after a failure of the workers, return at once.

        Ends the process with one sentence and exit code 2 if they can't meet.
        """
        if self._store is None:
            try:
                self._store = self._join()
            except ValueError as error:
                _end(str(error))
            except RuntimeError:  # from the store
                _end(f"node rank 0 at {self._host}:{self._port} is gone")
        return RendezvousInfo(
            PrefixStore(self._run_id, self._store),
            self._rank,
            self._hosts,
            RendezvousStoreInfo(self._host, self._store.port),
        )

    def _join(self) -> TCPStore:
        if self._rank == 0:
            several = self._hosts > 1
            store = serve_store(self._host, self._port, self._timeout, for_others=several)
        else:
            store = connect_store(self._host, self._port, self._timeout, self._waits())
        keys = [f"parallel/host/{rank}" for rank in range(self._hosts)]
        if store.add(keys[self._rank], 1) > 1:
            raise ValueError(f"--node-rank={self._rank} is given to two hosts of this run")
        deadline, waits = time.monotonic() + self._timeout.total_seconds(), self._waits()
        while missing := [str(rank) for rank, key in enumerate(keys) if not store.check([key])]:
            absent = f"node rank {', '.join(missing)} of {self._hosts}"
            if time.monotonic() > deadline:
                raise ValueError(f"{absent} has not joined within {self._timeout.total_seconds():g} s")
            waits(absent)
            time.sleep(POLL_S)
        return store

    def _waits(self) -> Callable[[str], None]:
        """Return a function that prints what this host waits for, at most once in `SAID_S`."""
        start = last = time.monotonic()

        def say(for_what: str) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= SAID_S:
                last = now
                print_to_stderr(
                    f"node rank {self._rank} has waited {now - start:.0f} s for {for_what}, of at most "
                    f"{self._timeout.total_seconds():g} s (--rdzv-conf=timeout=…)"
                )

        return say

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
        if self._store is None:
            return True
        deadline = time.monotonic() + LEAVING_S
        try:
            self._store.set(f"parallel/left/{self._rank}", "")
            keys = [f"parallel/left/{rank}" for rank in range(self._hosts)]
            while self._rank == 0 and not self._store.check(keys) and time.monotonic() < deadline:
                time.sleep(POLL_S)
        except RuntimeError:  # the store is gone, and nothing is left to close
            return False
        return True


def create_handler(parameters: RendezvousParameters) -> RendezvousHandler:
    """Return the handler that torchrun's arguments describe. Ends the process for invalid ones."""
    try:
        if parameters.min_nodes != parameters.max_nodes:
            raise ValueError(
                f"--nnodes={parameters.min_nodes}:{parameters.max_nodes} must be one number: only "
                "torchrun's --rdzv-backend=c10d goes on with fewer hosts, see docs/security.md"
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


def _end(sentence: str) -> NoReturn:
    print_to_stderr(f"error: {sentence}")
    raise SystemExit(2)
