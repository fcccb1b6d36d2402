"""Who this process is among those of one job, and the few words that they exchange outside a process group.

Under torchrun every rank starts on its own. Before there is a process group they must agree on the run directory,
and when all of them refuse the same bad input, one of them should say so. Both go through the key-value store that
`torch.distributed.rendezvous("env://")` joins: torchrun's own where it shares it, else one that rank 0 opens and that
`init_process_group` later shares. torch is imported only where there is more than one rank.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store

STORE_TIMEOUT = timedelta(seconds=60)  # torchrun starts the ranks of all nodes together; importing torch takes seconds
FOLLOWER_S = 0.5  # torchrun ends all ranks when one is gone: the first to fail must have spoken by then
STAY_S = 1.0  # the store may go with the first rank: the others must have heard by then whose fault it is


@dataclass
class Ranks:
    """This process's place in its job."""

    rank: int = 0
    world: int = 1
    launched: bool = False
    """Whether torchrun (or another launcher that sets RANK and WORLD_SIZE) started this process."""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    _store: Store | None = field(default=None, repr=False)

    @staticmethod
    def from_environment(environment: Mapping[str, str]) -> Ranks:
        """Read RANK and WORLD_SIZE; neither set means one process on its own. `ValueError` if they make no sense."""
        if "RANK" not in environment and "WORLD_SIZE" not in environment:
            return Ranks(environment=environment)
        numbers = {}
        for name in ("RANK", "WORLD_SIZE"):
            text = environment.get(name, "")
            if not text.isdecimal():
                raise ValueError(f"{name}={text} in the environment must be a whole number: start with torchrun")
            numbers[name] = int(text)
        rank, world = numbers["RANK"], numbers["WORLD_SIZE"]
        if rank >= world:
            raise ValueError(f"RANK={rank} in the environment must be below WORLD_SIZE={world}")
        return Ranks(rank, world, launched=True, environment=environment)

    def share(self, name: str, make: Callable[[], str]) -> str:
        """Rank 0's `make()`, on every rank. Its `ValueError` is raised on every rank, too."""
        if self.world == 1:
            return make()
        store = self._join()
        if self.rank == 0:
            try:
                value = make()
            except ValueError as error:
                store.set(name, f"error:{error}")
                raise
            store.set(name, f"value:{value}")
            return value
        try:
            store.wait([name], STORE_TIMEOUT)
        except RuntimeError as error:
            raise ValueError(f"rank 0 did not share its {name} within {STORE_TIMEOUT.seconds} s") from error
        kind, _, value = store.get(name).decode().partition(":")
        if kind == "error":
            raise ValueError(value)
        return value

    def report(self, message: str, details: str) -> bool:
        """Leave `details` where torchrun looks for a rank's error; return whether this rank should print `message`.

        It should not if another rank reported the same before. torchrun takes the error with the smallest time, in
        whole seconds, for the root cause: ranks that fail because another one did follow it by a second each.
        """
        order, repeated = 1, False
        if self.world > 1:
            try:
                order, repeated = self._claim(message)
            except (ValueError, RuntimeError) as error:
                # Without the store nobody knows who was first: every rank speaks for itself.
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
        """Wait a moment for all ranks to report an error: what this one knows, they learn from the store."""
        deadline = time.monotonic() + STAY_S
        while self.world > 1 and time.monotonic() < deadline:
            try:
                if self._join().add("failures", 0) >= self.world:
                    return
            except (ValueError, RuntimeError):
                return  # the store is gone; `report` has said so
            time.sleep(0.05)

    def _claim(self, message: str) -> tuple[int, bool]:
        """How many ranks failed so far, this one included, and whether the first of them said the same."""
        store = self._join()
        order = store.add("failures", 1)
        if order == 1:
            store.set("failure", message)
            return order, False
        deadline = time.monotonic() + FOLLOWER_S
        while time.monotonic() < deadline:  # store.wait would print a warning of its own when time is up
            if store.check(["failure"]):
                return order, store.get("failure").decode() == message
            time.sleep(0.02)
        return order, False

    def _join(self) -> Store:
        if self._store is None:
            from torch.distributed import PrefixStore
            from torch.distributed.rendezvous import rendezvous

            address, port = self.environment.get("MASTER_ADDR"), self.environment.get("MASTER_PORT")
            try:
                store, _, _ = next(rendezvous("env://", self.rank, self.world, timeout=STORE_TIMEOUT))
            except RuntimeError as error:
                if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
                    raise ValueError(f"MASTER_PORT={port} on {address} is in use by another program: "
                                     "choose another with --master-port") from error
                reason = str(error).splitlines()[0]
                raise ValueError(f"the ranks can't meet at MASTER_ADDR={address}, MASTER_PORT={port}: "
                                 f"{reason}") from error
            # A restarted group must not read what the one before it wrote.
            attempt = self.environment.get("TORCHELASTIC_RESTART_COUNT", "0")
            self._store = PrefixStore(f"parallel/launch/{attempt}", store)
        return self._store
