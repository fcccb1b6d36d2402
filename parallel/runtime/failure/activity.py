"""What a worker does: as its host says, and as the streams of its device have come to it.

A device lags behind the host. While marks are ahead of it, what the device does counts, because others
wait for that; otherwise what the host does, from when on the device had nothing left to do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from parallel.runtime.failure.stream_marks import Awaited, StreamMarks
from parallel.runtime.failure.wording import describe_message


class Doing(NamedTuple):
    """What a worker does at a moment."""

    where: str
    what: str
    """What it does, while it does not wait."""
    awaited: Awaited | None
    """The message that it waits for."""
    since: float

    def __str__(self) -> str:
        if self.awaited is None:
            return self.what
        key, peer = self.awaited
        return f"waiting for {'the others' if peer < 0 else f'worker {peer}'}: {describe_message(key)}"


class Activity:
    """The notes of one worker about what it does."""

    def __init__(self, now: Callable[[], float], marks: StreamMarks[Any, Any] | None = None) -> None:
        """`marks` are those of the worker's device; None: the host itself computes."""
        self._now, self._marks = now, marks
        self._host = Doing("the start", "computing", None, now())

    def at(self, where: str) -> None:
        self._host = Doing(where, "computing", None, self._now())
        if self._marks is not None:
            self._marks.at(where)

    def does(self, what: str) -> None:
        self._host = Doing(self._host.where, what, None, self._now())

    def waits(self, key: tuple[object, ...], peer: int) -> None:
        self._host = Doing(self._host.where, "computing", (key, peer), self._now())
        if self._marks is not None:
            self._marks.waits(key, peer)

    def goes_on(self) -> None:
        self._host = Doing(self._host.where, "computing", None, self._now())
        if self._marks is not None:
            self._marks.goes_on()

    @property
    def where(self) -> str:
        """The place where the host is."""
        return self._host.where

    @property
    def now(self) -> Doing:
        """What this worker does at this moment."""
        host = self._host
        device = None if self._marks is None else self._marks.reached()
        if device is None:
            return host
        if device.busy:
            return Doing(device.mark.where, "computing", device.mark.awaited, device.since)
        return Doing(host.where, host.what, host.awaited, max(host.since, device.since))
