"""What the streams of a device have reached, known without waiting for them.

The host of a GPU enqueues work and goes on; NCCL's `work.wait()` blocks the stream, not the host. So the
host marks the stream where it enqueues the wait for a message, and where the wait ends. A thread asks
which marks the stream has reached. A stream runs in order, so the last mark that it has reached says
what it does:

    a wait                it waits for that message
    the end of a wait     it computes
    a place in the run    it computes there
    no mark is ahead      it may be done: the host says what this worker does

Marks of streams other than the first one that was marked only tell waits, and only while the first
stream has reached all of its marks: another stream that does not wait for a message may wait for the
first one, which is no computing.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable
from itertools import islice
from typing import Generic, NamedTuple, Protocol, TypeVar

S = TypeVar("S", bound=Hashable)
"""A stream."""
E = TypeVar("E")
"""An event."""

MOST_PENDING = 10_000
"""Marks of a stream that it has not reached, beyond which none is added. CUDA accepts far fewer launches
before it blocks the host."""

Awaited = tuple[tuple[object, ...], int]
"""Key of a message, and the worker at the other end; −1: several workers."""


class Events(Protocol[S, E]):
    """Events of a device."""

    def current(self) -> S | None:
        """Return the current stream. None: events can't be recorded on it now."""

    def record(self, stream: S, event: E | None) -> E:
        """Record an event on the stream, `event` if there is one to use again; return it."""

    def reached(self, event: E) -> bool:
        """Return whether the stream has reached the event, without waiting for it."""


class Mark(NamedTuple):
    """What a stream does from a mark on."""

    where: str
    """Place in the run, such as: step 17."""
    awaited: Awaited | None
    """The message that it waits for; None: it computes."""


class Reached(NamedTuple):
    """What a device does."""

    mark: Mark
    since: float
    busy: bool
    """Whether marks are ahead of it."""


class _Stream(Generic[E]):
    """The marks of one stream."""

    def __init__(self, mark: Mark, now: float) -> None:
        self.last = mark
        """The mark that the stream has reached."""
        self.since = now
        """When that was noticed, or when work followed while no mark was ahead."""
        self.ahead: deque[tuple[E, Mark]] = deque()
        self.end = mark
        """The mark that was put last."""


class StreamMarks(Generic[S, E]):
    """Marks on the streams of one worker's device.

    Threads that enqueue work call `at`, `waits` and `goes_on`; another one calls `poll`. No call waits for
    the device, and none but `poll` asks it.
    """

    def __init__(self, events: Events[S, E], now: Callable[[], float]) -> None:
        self._events, self._now = events, now
        self._where = "the start"
        self._lock = threading.Lock()
        self._streams: dict[S, _Stream[E]] = {}
        self._free: list[E] = []

    def at(self, where: str) -> None:
        """Mark the current stream: what follows belongs to the place `where`."""
        self._put(lambda end: Mark(where, None))
        self._where = where

    def waits(self, key: tuple[object, ...], peer: int) -> None:
        """Mark the current stream: a wait for the message `key` follows."""
        self._put(lambda end: Mark(end.where, (key, peer)))

    def goes_on(self) -> None:
        """Mark the current stream: the wait that was marked last has ended."""
        self._put(lambda end: end._replace(awaited=None) if end.awaited is not None else None)

    def _put(self, make: Callable[[Mark], Mark | None]) -> None:
        current = self._events.current()
        if current is None:
            return
        with self._lock:
            now = self._now()
            stream = self._streams.setdefault(current, _Stream(Mark(self._where, None), now))
            mark = make(stream.end)
            if mark is None or len(stream.ahead) >= MOST_PENDING:
                return
            free = self._free.pop() if self._free else None
        event = self._events.record(
            current, free
        )  # without the lock: it blocks while the device accepts no work
        with self._lock:
            if not stream.ahead:
                stream.since = now
            stream.end = mark
            stream.ahead.append((event, mark))

    def poll(self) -> None:
        """Notice which marks the streams have reached. Called by one thread."""
        with self._lock:
            streams = [(stream, [event for event, _ in stream.ahead]) for stream in self._streams.values()]
        for stream, events in streams:
            reached = self._count(events)  # without the lock: the driver may block this thread
            if reached:
                with self._lock:
                    stream.last = next(islice(stream.ahead, reached - 1, None))[1]
                    stream.since = self._now()
                    for _ in range(reached):
                        self._free.append(stream.ahead.popleft()[0])

    def _count(self, events: list[E]) -> int:
        """Return how many events a stream has reached, by bisection: it reaches them in order."""
        if not events or not self._events.reached(events[0]):
            return 0
        low, high = 1, len(events)
        while low < high:
            middle = (low + high) // 2
            if self._events.reached(events[middle]):
                low = middle + 1
            else:
                high = middle
        return low

    def reached(self) -> Reached | None:
        """Return what the device does, as the last `poll` has found. None: nothing was marked."""
        with self._lock:
            if not self._streams:
                return None
            first, *others = self._streams.values()
            if not first.ahead:
                for stream in others:
                    if stream.ahead and stream.last.awaited is not None:
                        return Reached(stream.last, stream.since, busy=True)
            return Reached(first.last, first.since, busy=bool(first.ahead))
