"""A process that is told apart from a later one with its number."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Process:
    """A process for as long as it lives: its number may be given to another one afterwards."""

    pid: int
    started: int
    """Time of its start: on Linux in ticks since the machine's, elsewhere in ms since the epoch."""

    @staticmethod
    def of(pid: int) -> Process:
        """Return the process that has this number now. Raises `ProcessLookupError` without one."""
        started = _started(pid)
        if started is None:
            raise ProcessLookupError(pid)
        return Process(pid, started)

    @property
    def lives(self) -> bool:
        """Whether it has not ended. A zombie has."""
        return _started(self.pid) == self.started

    def send(self, number: int) -> None:
        """Send a signal to this process, and to none that got its number; nothing if it has ended.

        Linux only.
        """
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(self.pid)
            try:
                if self.lives:  # so the handle is of this process
                    signal.pidfd_send_signal(handle, number)
            finally:
                os.close(handle)


def _started(pid: int) -> int | None:
    if sys.platform != "linux":
        try:
            return round(1000 * psutil.Process(pid).create_time())
        except psutil.NoSuchProcess:
            return None
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # proc(5): fields 3 and 22, after the name, which may have spaces. Unlike psutil's time, which is
    # one of the day, ticks since the start of the machine stay the same when its clock is set.
    state, *fields = text.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])
