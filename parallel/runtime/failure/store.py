"""The key-value store through which workers exchange their states and the blame.

It is the launcher's store, over a separate connection, which carries one call at a time. A
call blocks for as long as the store's machine is silent, because torch's client has a timeout for
missing keys but none for that.
"""

from __future__ import annotations

import os
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore

from parallel.config.checks import printable, shortened
from parallel.runtime.failure.blame import ABSENT, State

BLAME = "blame"


def store_address() -> tuple[str, int]:
    """Return the host and the port of the launcher's store."""
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def attempt() -> int:
    """Return how many times torchrun has started the workers again after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


class StateStore:
    """One worker's access to the store.

    Construction and every method raise `RuntimeError` when the store is gone, and block while its
    process or machine is stopped.
    """

    def __init__(self, rank: int, size: int, timeout_s: float) -> None:
        self._rank = rank
        host, port = store_address()
        store = TCPStore(
            host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout_s)
        )
        # A restarted group must not read what the group before it wrote.
        self._store = PrefixStore(f"parallel/watch/{attempt()}", store)
        self._keys = [*(str(rank) for rank in range(size)), BLAME]
        for key in self._keys:  # reading a missing key would block
            self._store.compare_set(key, "", "")

    def tell(self, state: State) -> None:
        """Write this worker's state."""
        self._store.set(str(self._rank), state.encode())

    def read(self) -> tuple[list[State], str]:
        """Return all states by rank, and the blame or "".

        The state of a worker that has not written one is `ABSENT`. Raises `ValueError` for what no
        worker writes.
        """
        *texts, blame = self._store.multi_get(self._keys)
        states = []
        for rank, text in enumerate(texts):
            try:
                states.append(State.decode(text) if text else ABSENT)
            except ValueError as error:
                raise ValueError(f"as the state of worker {rank}: {error}") from error
        return states, _sentence(blame)

    def claim(self, sentence: str) -> str:
        """Write the blame unless there is one already; return the one that stands."""
        return _sentence(self._store.compare_set(BLAME, "", sentence))


def _sentence(text: bytes) -> str:
    """Return text from the store as a message may show it."""
    return shortened(printable(text.decode(errors="replace")))
