"""Phases of a worker: how it spends each moment of a step, so that a slow one can be named.

A worker is always in one phase. `enter` ends the phase before, so a step costs one mark per change,
and the time of a phase excludes the phases inside it: a backward without the messages that it
starts, a message without the wait for its sender. A message wakes another worker, which may take
the core of the one that sends: time without a core (`CoreWaits`) is not counted to messages.

On CUDA the marks are events, which the timer reads after the device has passed them.
"""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from array import array
from collections import deque
from enum import IntEnum
from typing import Any

import numpy as np

from parallel.runtime.instrumentation.timer import Timer


class Phase(IntEnum):
    """Ways to spend time. The first four can make a worker a straggler."""

    LOADING = 0
    """Waiting for the next batch of its own loader."""
    FORWARD = 1
    BACKWARD = 2
    MESSAGES = 3
    """Packing, sending and unpacking, without waiting for other workers."""
    WAITING = 4
    """Blocked by another worker."""
    OTHER = 5
    """Updates, checkpoints, progress."""


WITHOUT_CORE = frozenset({Phase.MESSAGES, Phase.WAITING})
"""Phases that are counted without the time for which the worker has no core."""
OWN = (Phase.LOADING, Phase.FORWARD, Phase.BACKWARD, Phase.MESSAGES)
"""Phases whose length is up to the worker alone."""


class CoreWaits:
    """Seconds for which the thread that made this was ready to run and had no core: Linux's
    schedstat. Elsewhere 0."""

    def __init__(self) -> None:
        self._file: int | None = None
        with contextlib.suppress(OSError):  # not Linux, or a kernel without this file
            self._file = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)

    def seconds(self) -> float:
        return 0.0 if self._file is None else int(os.pread(self._file, 80, 0).split()[1]) / 1e9


class Phases:
    """Interface of recorders, and the recorder that discards everything."""

    steps = 0
    """Steps that have ended."""

    def reset(self) -> None:
        """Forget all steps."""

    def enter(self, phase: Phase) -> Phase:
        """Begin a phase and return the one that it ends."""
        return Phase.OTHER

    def lap(self, phase: Phase) -> None:
        """Count the time since the last mark to `phase`, and stay in the present one."""

    def end_step(self) -> None:
        """End a step."""

    def without_core(self) -> float:
        """Return the seconds so far for which the worker had no core, as of the last mark."""
        return 0.0

    def seconds(self) -> np.ndarray:
        """Return the seconds in each phase of `OWN` [steps, phases]. Waits for the device."""
        return np.empty((0, len(OWN)))


class HostPhases(Phases):
    """Phases of a worker on a CPU."""

    def __init__(self) -> None:
        self._core = CoreWaits()
        self._without_core = 0.0
        self.reset()

    def reset(self) -> None:
        self.steps = 0
        self._rows = array("d")
        self._row = [0.0] * len(Phase)
        self._phase = Phase.OTHER
        self._last = time.perf_counter()

    def enter(self, phase: Phase) -> Phase:
        before = self._phase
        self.lap(before)
        if before in WITHOUT_CORE or phase in WITHOUT_CORE:
            waited = self._core.seconds()
            if before in WITHOUT_CORE:
                self._row[before] -= waited - self._without_core
            self._without_core = waited
        self._phase = phase
        return before

    def lap(self, phase: Phase) -> None:
        now = time.perf_counter()
        self._row[phase] += now - self._last
        self._last = now

    def without_core(self) -> float:
        return self._without_core

    def end_step(self) -> None:
        self.enter(Phase.OTHER)
        self._rows.extend(self._row[: len(OWN)])
        self._row = [0.0] * len(Phase)
        self.steps += 1

    def seconds(self) -> np.ndarray:
        return np.array(self._rows).reshape(-1, len(OWN))


class DevicePhases(Phases):
    """Phases of a worker on a GPU, by marks of its timer."""

    def __init__(self, timer: Timer) -> None:
        self._timer = timer
        self.reset()

    def reset(self) -> None:
        self.steps = 0
        self._rows = array("d")
        self._phase = Phase.OTHER
        self._unread: deque[list[tuple[Phase, Any]]] = deque()
        """Marks of the steps that are not in `_rows` yet, each with the phase that it ends."""
        self._marks: list[tuple[Phase, Any]] = [(Phase.OTHER, self._timer.mark())]

    def enter(self, phase: Phase) -> Phase:
        self.lap(before := self._phase)
        self._phase = phase
        return before

    def lap(self, phase: Phase) -> None:
        self._marks.append((phase, self._timer.mark()))

    def end_step(self) -> None:
        self.enter(Phase.OTHER)
        self._unread.append(self._marks)
        self._marks = self._marks[-1:]
        self.steps += 1
        while self._unread and self._timer.known(self._unread[0][-1][1]):
            self._add_row()

    def _add_row(self) -> None:
        marks = self._unread.popleft()
        row = [0.0] * len(Phase)
        for (_, begin), (phase, end) in zip(marks, marks[1:], strict=False):
            row[phase] += self._timer.seconds(end) - self._timer.seconds(begin)
        self._rows.extend(row[: len(OWN)])

    def seconds(self) -> np.ndarray:
        while self._unread:
            self._add_row()
        return np.array(self._rows).reshape(-1, len(OWN))


def open_phases(timer: Timer, *, on: bool) -> Phases:
    """Return a recorder for the device of a timer, or one that discards everything unless `on`."""
    if not on:
        return Phases()
    return DevicePhases(timer) if timer.behind else HostPhases()
