"""Where the workers of a run write their states and the verdict: keys of the store that the launcher keeps.

A connection of its own, for one call at a time goes through a connection. A call blocks for as long as the store's
machine is silent: torch's client has a timeout for keys that are missing, but none for that.
"""

from __future__ import annotations

import os
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore

from parallel.runtime.failure.blame import State

VERDICT = "verdict"


class Board:
    """One worker's access. Every method raises `RuntimeError` when the store is gone."""

    def __init__(self, rank: int, size: int, timeout_s: float) -> None:
        self._rank = rank
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self.address = f"{host}:{port}"
        store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))
        # A restarted group must not read what the one before it wrote.
        self._store = PrefixStore(f"parallel/watch/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        self._keys = [*(str(rank) for rank in range(size)), VERDICT]
        self._store.compare_set(VERDICT, "", "")

    def tell(self, state: State) -> None:
        """Write this worker's state."""
        self._store.set(str(self._rank), state.encode())

    def read(self) -> tuple[list[State], str]:
        """All states, by rank, and the verdict, or "". Every worker must have told its state before."""
        *states, verdict = self._store.multi_get(self._keys)
        return [State.decode(text) for text in states], verdict.decode()

    def claim(self, sentence: str) -> str:
        """Write the verdict, unless there is one; returns the one that holds."""
        return self._store.compare_set(VERDICT, "", sentence).decode()
