"""Communication between the ranks of a job before there is a process group.

Under torchrun each rank starts separately. The ranks must agree on a run directory, and if all of
them reject the same input, only one should print the error. Both use the key-value store that
`torch.distributed.rendezvous("env://")` joins: torchrun's own store if it is shared, otherwise one
that rank 0 opens and `init_process_group` uses later. With one rank, torch is not imported.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from parallel.runtime.failure.running_clock import RunningClock

if TYPE_CHECKING:
    from torch.distributed import Store

T = TypeVar("T")

STORE_TIMEOUT = timedelta(seconds=60)
"""torchrun starts the ranks of all nodes together, and importing torch takes seconds."""
SILENT_STORE_S = STORE_TIMEOUT.total_seconds() + 5.0
"""Time after which the store's process counts as stopped. It is longer than any wait for a key."""
FOLLOWER_S = 0.5
"""Delay of ranks that fail after the first. torchrun ends all ranks as soon as one exits, so the
first one needs this time to report its error."""
STAY_S = 1.0
"""Time that a failed rank keeps the store alive, so that the others can read the cause from it."""


@dataclass
class Ranks:
    """The rank of this process, and its connection to the other ranks of the job."""

    rank: int = 0
    world: int = 1
    launched: bool = False
    """Whether torchrun (or another launcher that sets RANK and WORLD_SIZE) started this process."""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    _root: Store | None = field(default=None, repr=False)
    """The store of all attempts."""
    _store: Store | None = field(default=None, repr=False)
    """This attempt's part of it."""

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

    def share(self, name: str, make: Callable[[], str]) -> str:
        """Return rank 0's `make()` on every rank. Its `ValueError` is raised on every rank, too."""
        if self.world == 1:
            return make()
        if self.rank == 0:
            try:
                value = make()
            except ValueError as error:
                text = f"error:{error}"
                self._in_time(lambda: self._join().set(name, text))
                raise
            self._in_time(lambda: self._join().set(name, f"value:{value}"))
            return value
        kind, _, value = self._in_time(lambda: self._shared(name)).partition(":")
        if kind == "error":
            raise ValueError(value)
        return value

    def _shared(self, name: str) -> str:
        store = self._join()
        try:
            store.wait([name], STORE_TIMEOUT)
        except RuntimeError as error:
            raise ValueError(f"rank 0 did not share its {name} within {STORE_TIMEOUT.seconds} s") from error
        return str(store.get(name).decode())

    @property
    def attempt(self) -> int:
        """How many times torchrun has started the ranks again after a failure."""
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

    def report(self, message: str, details: str) -> bool:
        """Write `details` to torchrun's error file. Return whether this rank should print
        `message`.

        It should not if the first rank to fail reported the same message. torchrun considers the
        error with the smallest timestamp, in whole seconds, the root cause. So each rank that fails
        later adds a second for each failure before its own.
        """
        order, repeated = 1, False
        if self.world > 1:
            try:
                order, repeated = self._in_time(lambda: self._claim(message))
            except (ValueError, RuntimeError) as error:
                # Without the store the first failure is unknown, so every rank prints its error.
                if str(error) != message:
                    print(f"rank {self.rank} can't reach the others: {error}", file=sys.stderr, flush=True)
        path = self.environment.get("TORCHELASTIC_ERROR_FILE")
        if path:
            extra = {"py_callstack": details, "timestamp": str(int(time.time()) + order - 1)}
            with open(path, "w", encoding="utf-8") as file:
                json.dump({"message": {"message": message, "extraInfo": extra}}, file)
        if order > 1:
            time.sleep(FOLLOWER_S)
        return not repeated

    def stay(self) -> None:
        """Keep the store alive until all ranks have reported an error, at most `STAY_S`."""
        deadline = time.monotonic() + STAY_S
        while self.world > 1 and time.monotonic() < deadline:
            try:
                if self._in_time(lambda: self._join().add("failures", 0)) >= self.world:
                    return
            except (ValueError, RuntimeError):
                return  # the store is gone; `report` has said so
            time.sleep(0.05)

    def _in_time(self, call: Callable[[], T]) -> T:
        """Return `call()`, which uses the store. Raises what it raises, and `ValueError` if the
        store does not answer.

        torch's client has no timeout for a store whose process or machine is stopped. A thread
        that is still blocked by one ends with this process.
        """
        results: list[T] = []
        errors: list[Exception] = []

        def run() -> None:
            try:
                results.append(call())
            except Exception as error:  # raised again in the caller's thread
                errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        now = RunningClock()
        limit = now() + SILENT_STORE_S
        while thread.is_alive() and now() < limit:
            thread.join(min(0.5, SILENT_STORE_S))
        if errors:
            raise errors[0]
        if not results:
            address = f"{self.environment.get('MASTER_ADDR')}:{self.environment.get('MASTER_PORT')}"
            raise ValueError(f"the launcher's store at {address} has not answered for {SILENT_STORE_S:g} s")
        return results[0]

    def _claim(self, message: str) -> tuple[int, bool]:
        """Return the number of failed ranks including this one, and whether the first failure is
        the same."""
        store = self._join()
        order = store.add("failures", 1)
        if order == 1:
            store.set("failure", message)
            return order, False
        deadline = time.monotonic() + FOLLOWER_S
        while time.monotonic() < deadline:  # store.wait would print a warning at its timeout
            if store.check(["failure"]):
                return order, store.get("failure").decode() == message
            time.sleep(0.02)
        return order, False

    def _join(self) -> Store:
        if self._store is None:
            from torch.distributed import PrefixStore

            # A restarted group must not read the entries of the previous one.
            self._store = PrefixStore(f"parallel/launch/{self.attempt}", self._open_store())
        return self._store

    def _open_store(self) -> Store:
        if self._root is None:
            from torch.distributed.rendezvous import rendezvous

            address, port = self.environment.get("MASTER_ADDR"), self.environment.get("MASTER_PORT")
            try:
                self._root, _, _ = next(rendezvous("env://", self.rank, self.world, timeout=STORE_TIMEOUT))
            except RuntimeError as error:
                if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
                    raise ValueError(
                        f"MASTER_PORT={port} on {address} is in use by another program: "
                        "choose another with --master-port"
                    ) from error
                reason = str(error).splitlines()[0]
                raise ValueError(
                    f"the ranks can't meet at MASTER_ADDR={address}, MASTER_PORT={port}: {reason}"
                ) from error
        return self._root
