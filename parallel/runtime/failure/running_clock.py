"""A clock that stands still while its process is stopped."""

from __future__ import annotations

import threading
import time

GAP_S = 2.0
"""Longest time between two readings of a process that runs. A thread must read the clock more often."""


class RunningClock:
    """Seconds for which this process has run, up to an unknown constant.

    A job that is stopped as a whole (Ctrl-Z, SIGSTOP, a suspended machine) and continued later must
    not find that it has waited for too long.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = time.monotonic()
        self._stopped = 0.0

    @property
    def was_stopped(self) -> bool:
        """Whether the process has been stopped since this clock was made."""
        return self._stopped > 0

    def __call__(self) -> float:
        with self._lock:
            now = time.monotonic()
            if now - self._last > GAP_S:
                self._stopped += now - self._last
            self._last = now
            return now - self._stopped
