"""Time stamps of a worker's device.

A CPU is its own device: a time stamp is a reading of the host's clock. A GPU runs behind the host,
which only enqueues its work. There a time stamp is an event of the current stream: it stands for the
moment at which the device has finished everything that was enqueued in this stream before. Marks of
different streams may be passed in another order than that of their making.

Events are read after the device has passed them, so that the host never waits within a step. The
time of a mark is that of an earlier one, the anchor, plus the time between the two:

    seconds(mark) = seconds(anchor) + elapsed(anchor, mark)

`elapsed_time` is a float32 of milliseconds, which an hour into an epoch has steps of 0.25 ms. So the
anchor moves along, and is at most `ANCHOR_S` before the mark plus the time between two marks.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Protocol

import torch

UNREAD, BATCH = 4096, 64
"""Most events that wait to be read, and after how many new ones the oldest are. Reading an event takes the
host some microseconds, so most are read after the epoch; those of a long epoch would fill the
memory."""
ANCHOR_S = 1.0
"""Seconds after which the anchor moves: a float32 of 1,000 ms has steps of 0.06 µs."""


class Timer(ABC):
    """Time stamps (marks) of one device."""

    behind: ClassVar[bool]
    """Whether the device runs behind the host."""

    @abstractmethod
    def reset(self) -> None:
        """Count from now. Earlier marks become invalid."""

    @abstractmethod
    def mark(self) -> Any:
        """Return a mark of the moment at which the device has done all work enqueued so far."""

    @abstractmethod
    def seconds(self, mark: Any) -> float:
        """Return the time of a mark since `reset`. Waits until the device has passed it."""

    @abstractmethod
    def passed(self, mark: Any) -> bool:
        """Return whether the device has passed a mark. Never waits."""

    @abstractmethod
    def known(self, mark: Any) -> bool:
        """Return whether the time of a mark has been read already, so that `seconds` is cheap."""


class HostTimer(Timer):
    """The clock of the host, for devices that compute while the host waits."""

    behind = False

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._origin = time.perf_counter()

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, mark: float) -> float:
        return mark - self._origin

    def passed(self, mark: float) -> bool:
        return True

    def known(self, mark: float) -> bool:
        return True


class Event(Protocol):
    """What a timer uses of `torch.cuda.Event`."""

    def record(self) -> None:
        """Record it in the current stream. It may have been recorded before."""

    def query(self) -> bool:
        """Return whether the stream has passed it."""

    def synchronize(self) -> None:
        """Wait until the stream has passed it."""

    def elapsed_time(self, end: Any) -> float:
        """Return the milliseconds until `end`; both must have been passed."""


class DeviceMark:
    """A moment of the device: an event until it is read, then seconds since `reset`."""

    __slots__ = ("at", "event")

    def __init__(self, event: Event) -> None:
        self.event: Event | None = event
        self.at = 0.0


class DeviceTimer(Timer):
    """Events of a device's stream, which are used again once they have been read."""

    behind = True

    def __init__(self, make_event: Callable[[], Event]) -> None:
        self._make_event = make_event
        self._free: list[Event] = []
        self.reset()

    def reset(self) -> None:
        self._unread: deque[DeviceMark] = deque()
        self._anchor, self._anchor_s = self._recorded(), 0.0

    def _recorded(self) -> Event:
        event = self._free.pop() if self._free else self._make_event()
        event.record()
        return event

    def mark(self) -> DeviceMark:
        mark = DeviceMark(self._recorded())
        self._unread.append(mark)
        if len(self._unread) > UNREAD and len(self._unread) % BATCH == 0:
            self._read_passed()
        return mark

    def _read_passed(self) -> None:
        """Read the oldest marks that the device has passed, down to `UNREAD` of them."""
        while len(self._unread) > UNREAD and self.passed(self._unread[0]):
            self._read(self._unread.popleft())

    def _read(self, mark: DeviceMark) -> None:
        event = mark.event
        assert event is not None  # an unread mark has its event
        since_s = self._anchor.elapsed_time(event) / 1000
        mark.at, mark.event = self._anchor_s + since_s, None
        if since_s < ANCHOR_S:
            self._free.append(event)
        else:
            self._free.append(self._anchor)
            self._anchor, self._anchor_s = event, mark.at

    def seconds(self, mark: DeviceMark) -> float:
        if mark.event is not None:
            mark.event.synchronize()
        later = list[DeviceMark]()
        """Older marks of other streams that these have not passed, for which nobody waits."""
        while mark.event is not None:
            oldest = self._unread.popleft()
            if self.passed(oldest):
                self._read(oldest)
            else:
                later.append(oldest)
        self._unread.extendleft(reversed(later))
        return mark.at

    def passed(self, mark: DeviceMark) -> bool:
        return mark.event is None or mark.event.query()

    def known(self, mark: DeviceMark) -> bool:
        return mark.event is None


def open_timer(device: torch.device) -> Timer:
    """Return the timer of a device."""
    if device.type == "cuda":
        return DeviceTimer(partial(torch.cuda.Event, enable_timing=True))
    return HostTimer()
