"""Communication between the ranks of a job before there is a process group.

Under torchrun each rank starts separately. The ranks must agree on a run directory, and if all of
them reject the same input, only one should print the error. Both use the key-value store that
the process group uses, too: the launcher's, or without torchrun one that rank 0 opens. With one
rank, torch is not imported.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from parallel.config import invalid_input
from parallel.config.documents import from_json
from parallel.config.stderr import print_to_stderr
from parallel.config.typed import structure
from parallel.runtime.failure.errors import RunEnded
from parallel.runtime.failure.host_names import (
    describe_host,
    describe_workers,
    numbered_host,
    workers_per_host,
)
from parallel.runtime.failure.in_time import NoAnswer, call_in_time
from parallel.runtime.failure.running_clock import RunningClock

if TYPE_CHECKING:
    from torch.distributed import Store

T = TypeVar("T")

LONGER = "a larger cluster.timeout_s waits longer"
START_S = 60.0
"""Time that a rank waits for the others to start, unless cluster.timeout_s is longer. Launchers start
the ranks of all hosts together, and importing torch takes seconds."""
ANSWER_S = 5.0
"""Time beyond that in which ranks wait for the answer of rank 0, which waits for the others, and for
an answer of the store."""
POLL_S = 0.01
"""Interval at which a rank looks for what it waits for, or for the failure of another."""
FOLLOWER_S = 0.5
"""Delay of ranks that fail after the first, and half that of ranks for which another speaks. torchrun ends
all ranks as soon as one exits, so the others need this time to report their errors."""
STAY_S = 1.0
"""Time that a failed rank waits for the others, so that they can read the cause from its store."""
SERVING_STAY_S = 10.0
"""Time that a failed rank waits if it serves the store itself, without torchrun: the others may still
import torch."""
REPORT_S = 10.0
"""Time in which a rank that has failed must find the store to tell the others."""


@dataclass(frozen=True)
class Failure:
    """Why a rank ended, as it tells those that wait for it."""

    host: str
    """Its host (`host_names.numbered_host`)."""
    rank: int
    message: str
    invalid: bool
    """Whether it rejected its input."""


@dataclass
class Ranks:
    """The rank of this process, and its connection to the other ranks of the job."""

    rank: int = 0
    world: int = 1
    launched: bool = False
    """Whether torchrun (or srun, or another launcher that sets RANK and WORLD_SIZE) started this
    process."""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    _root: Store | None = field(default=None, repr=False)
    """The store of all attempts."""
    _store: Store | None = field(default=None, repr=False)
    """This attempt's part of it."""
    serves: bool = field(default=False, repr=False)
    """Whether this rank serves the store."""
    limit_s: float = START_S
    """Time to wait for the others, and to look for the store."""
    _silent: str = field(default="", repr=False)
    """Sentence, if the store has stopped to answer."""

    @staticmethod
    def from_environment(environment: Mapping[str, str]) -> Ranks:
        """Read RANK and WORLD_SIZE. If neither is set, the job has one process.

        Raises `ValueError` for invalid values.
        """
        if "RANK" not in environment and "WORLD_SIZE" not in environment:
            return Ranks(environment=environment)
        numbers = {}
        for name in ("RANK", "WORLD_SIZE"):
            text = environment.get(name, "")
            if not text.isdecimal():
                raise ValueError(
                    f"{name}={text} in the environment must be a whole number: start with torchrun"
                )
            numbers[name] = int(text)
        rank, world = numbers["RANK"], numbers["WORLD_SIZE"]
        if rank >= world:
            raise ValueError(f"RANK={rank} in the environment must be below WORLD_SIZE={world}")
        return Ranks(rank, world, launched=True, environment=environment)

    def allow(self, timeout_s: float) -> None:
        """Wait for the others for at least `timeout_s`, of the configuration."""
        self.limit_s = max(self.limit_s, timeout_s)

    def share(self, name: str, make: Callable[[], str]) -> str:
        """Return rank 0's `make()` on every rank.

        If its input is invalid (`invalid_input`), every rank raises `ValueError` with its sentence.
        """
        if self.world == 1:
            return make()
        if self.rank == 0:
            try:
                value = make()
            except (ValueError, OSError) as error:
                invalid = invalid_input(error)
                if invalid is not None:
                    self._in_time(lambda: self._join().set(name, f"error:{invalid}"))
                raise
            self._in_time(lambda: self._join().set(name, f"value:{value}"))
            return value
        kind, _, value = self._in_time(lambda: self._shared(name)).partition(":")
        if kind == "error":
            raise ValueError(value)
        return value

    def collect(self, name: str, value: str) -> list[str]:
        """Return the values of all ranks on rank 0, an empty list on the others.

        Raises `ValueError` if one is missing or rejected its input instead, with its host and its
        message, and `RunEnded` if one failed in another way.
        """

        def collected() -> list[str]:
            store = self._join()
            store.set(f"{name}/{self.rank}", value)
            return [] if self.rank > 0 else self._values(store, name)

        return [value] if self.world == 1 else self._in_time(collected)

    def exchange(self, name: str, value: str) -> list[str]:
        """Return the values of all ranks on every rank. Raises `ValueError` as `collect`."""

        def exchanged() -> list[str]:
            store = self._join()
            store.set(f"{name}/{self.rank}", value)
            return self._values(store, name)

        return [value] if self.world == 1 else self._in_time(exchanged)

    def _values(self, store: Store, name: str) -> list[str]:
        keys = [f"{name}/{rank}" for rank in range(self.world)]
        if not self._wait(store, keys, self.limit_s):
            late = [rank for rank, key in enumerate(keys) if not store.check([key])]
            raise ValueError(
                f"waited {self.limit_s:g} s for the start of {self._named(store, late)}; {LONGER}"
            )
        return [text.decode() for text in store.multi_get(keys)]

    def call(self, function: Callable[[Store], T]) -> T:
        """Return `function(store)`. Raises `ValueError` if the store does not answer."""
        return self._in_time(lambda: function(self._join()))

    def _shared(self, name: str) -> str:
        store = self._join()
        limit = self.limit_s + ANSWER_S
        if not self._wait(store, [name], limit):
            raise ValueError(f"waited {limit:g} s for {name} from {self._named(store, [0])}; {LONGER}")
        return str(store.get(name).decode())

    def _named(self, store: Store, ranks: Sequence[int]) -> str:
        """Return ranks with their hosts, of which all wrote the name that have reached the store."""
        hosts = {}
        for rank in range(self.world):
            key = f"host/{rank}"
            hosts[rank] = store.get(key).decode() if store.check([key]) else ""
        return describe_workers(ranks, hosts, workers_per_host(self.rank, self.world, self.environment))

    def _wait(self, store: Store, keys: list[str], seconds: float) -> bool:
        """Return whether `keys` were written in time.

        Raises `ValueError` or `RunEnded` with the message of the first rank that failed: nobody
        waits for it.
        """
        now = RunningClock()
        limit = now() + seconds
        while not store.check(keys):  # store.wait would print a warning at its timeout
            if store.check(["failure"]):
                raise self._failure_of(store.get("failure").decode())
            if now() > limit:
                return False
            time.sleep(POLL_S)
        return True

    def _failure_of(self, text: str) -> Exception:
        """Return what another rank's failure, as it wrote it, means for this one."""
        failure = structure(Failure, from_json(text.encode()), "failure")
        message = failure.message
        if failure.host != numbered_host(self.environment):
            message = f"{describe_host(failure.host, [failure.rank])}: {message}"
        return ValueError(message) if failure.invalid else RunEnded(message)

    @property
    def attempt(self) -> int:
        """How many times torchrun has started the ranks again after a failure, or Slurm the job."""
        return int(self.environment.get("TORCHELASTIC_RESTART_COUNT", "0"))

    @property
    def restartable(self) -> bool:
        """Whether torchrun starts the ranks again after a failure (`--max-restarts`)."""
        return int(self.environment.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0

    def remember(self, name: str, value: str) -> None:
        """Keep a value of rank 0 for later attempts, if torchrun may start the ranks again."""
        if self.rank == 0 and self.restartable:
            self._in_time(lambda: self._open_store().set(f"parallel/kept/{name}", value))

    def recall(self, name: str) -> str | None:
        """Return what an earlier attempt remembered. None: this is the first, or it remembered
        nothing. Only rank 0."""
        if self.attempt == 0:
            return None

        def read() -> str | None:
            store, key = self._open_store(), f"parallel/kept/{name}"
            return store.get(key).decode() if store.check([key]) else None

        return self._in_time(read)

    def report(self, message: str, details: str, *, invalid: bool = False) -> bool:
        """Write `details` to torchrun's error file. Return whether this rank should print
        `message`. `invalid`: its input is.

        It should not if the first rank of this host to fail reported the same message. torchrun
        considers the error with the smallest timestamp, in whole seconds, the root cause. So each rank
        that fails later adds a second for each failure before its own.
        """
        order, repeated = 1, False
        self.limit_s = min(self.limit_s, REPORT_S)
        if self.world > 1:
            try:
                order, repeated = self._in_time(lambda: self._claim(message, invalid))
            except (ValueError, RuntimeError) as error:
                # Without the store the first failure is unknown, so every rank prints its error.
                if str(error) != message:
                    print_to_stderr(f"rank {self.rank} can't reach the others: {error}")
        path = self.environment.get("TORCHELASTIC_ERROR_FILE")
        if path:
            extra = {"py_callstack": details, "timestamp": str(int(time.time()) + order - 1)}
            with open(path, "w", encoding="utf-8") as file:
                json.dump({"message": {"message": message, "extraInfo": extra}}, file)
        # The rank that speaks for this one may have failed after it, and then waits itself.
        time.sleep(2 * FOLLOWER_S if repeated else FOLLOWER_S if order > 1 else 0.0)
        return not repeated

    def stay(self) -> None:
        """Keep the store alive until all ranks have reported an error, for a limited time."""
        deadline = time.monotonic() + (SERVING_STAY_S if self.serves else STAY_S)
        while self.world > 1 and time.monotonic() < deadline:
            try:
                if self._in_time(lambda: self._join().add("failures", 0)) >= self.world:
                    return
            except (ValueError, RuntimeError):
                return  # the store is gone; `report` has said so
            time.sleep(0.05)

    def _in_time(self, call: Callable[[], T]) -> T:
        """Return `call()`, which uses the store. Raises what it raises, and `ValueError` if the
        store does not answer, now or in an earlier call: nobody waits for it twice.

        torch's client has no timeout for a store whose process or machine is stopped.
        """
        if not self._silent:
            # Longer than any wait for a key, before which the first call looks for the store.
            seconds = self.limit_s * (2 if self._store is None else 1) + 2 * ANSWER_S
            try:
                return call_in_time(call, seconds)
            except NoAnswer:
                address = f"{self.environment.get('MASTER_ADDR')}:{self.environment.get('MASTER_PORT')}"
                self._silent = f"the launcher's store at {address} has not answered for {seconds:g} s"
        raise ValueError(self._silent)

    def _claim(self, message: str, invalid: bool) -> tuple[int, bool]:
        """Return the number of failed ranks including this one, and whether another rank of this
        host was the first to fail there, with the same message."""
        store = self._join()
        order = store.add("failures", 1)
        if order == 1:
            failure = Failure(numbered_host(self.environment), self.rank, message, invalid)
            store.set("failure", json.dumps(asdict(failure)))  # for those that wait for this rank
        own = f"{self.rank} {message}"
        key = f"first failure of host {self.environment.get('GROUP_RANK', '0')}"
        first = store.compare_set(key, "", own).decode()
        return order, first != own and first.partition(" ")[2] == message

    def _join(self) -> Store:
        if self._store is None:
            from torch.distributed import PrefixStore

            # A restarted group must not read the entries of the previous one.
            self._store = PrefixStore(f"parallel/launch/{self.attempt}", self._open_store())
            self._store.set(f"host/{self.rank}", numbered_host(self.environment))
        return self._store

    def _open_store(self) -> Store:
        if self._root is None:
            from parallel.runtime.communication.bound_store import AGENT_STORE, connect_store, serve_store

            address = self.environment.get("MASTER_ADDR", "")
            port = self.environment.get("MASTER_PORT", "")
            if not address or not port.isdecimal():
                raise ValueError(
                    f"MASTER_ADDR={address} and MASTER_PORT={port} in the environment must be the address and a "
                    "port of the host of rank 0: start with python -m parallel.torchrun"
                )
            limit = timedelta(seconds=self.limit_s)
            if self.rank > 0 or self.environment.get(AGENT_STORE) == "True":
                self._root = connect_store(address, int(port), limit)
            else:
                spans_hosts = int(self.environment.get("LOCAL_WORLD_SIZE", self.world)) < self.world
                self._root = serve_store(address, int(port), limit, for_others=spans_hosts)
                self.serves = True
                os.environ[AGENT_STORE] = "True"  # torch's own rendezvous would open another store
        return self._root
