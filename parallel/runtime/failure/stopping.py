"""Agreement of the workers on the step after which all of them stop.

A launcher asks its workers to end with a signal, and each hears it in another step. Once a worker
wants to stop, it states the number of steps that it will have done when it next can: those that are
done, plus the one that it may be in. All stop at the largest number that any of them states. No
worker is past it, because each waits between two steps until it knows all numbers, and each can
reach it, because the others take part in the steps before it.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Signals that ask a worker to save its state and end. Slurm can send SIGUSR1 some time before
SIGTERM."""


class Stopping:
    """One worker's side of the agreement. The main thread calls `between_steps`, another thread the
    rest."""

    def __init__(self) -> None:
        self._wanted = False
        self._reaches: int | None = None
        self.stated: int | None = None
        """Steps after which this worker can stop; None: it does not want to, or is in no step."""
        self.agreed: int | None = None
        """Steps after which all workers stop."""

    def between_steps(self, done: int) -> bool:
        """Note that `done` steps are done and another may begin; return whether a stop is wanted."""
        # In this order: the other thread either sees this number, or has set the flag before.
        self._reaches = done + 1
        return self._wanted

    def want(self) -> None:
        """Ask for a stop, and state this worker's number, if steps have begun."""
        self._wanted = True
        if self.stated is None:
            self.stated = self._reaches

    def hear(self, stated: Sequence[int | None]) -> None:
        """Take note of all workers' numbers, this one's included."""
        if any(number is not None for number in stated):
            self.want()
        if self.agreed is None and all(number is not None for number in stated):
            self.agreed = max(number for number in stated if number is not None)
