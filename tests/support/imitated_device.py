"""An imitation of a device for the watch: a stream that works through its queue in order, in a time that
the test sets."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from parallel.runtime.failure.blame import ABSENT, State


class Event:
    done = False


class Stream:
    """A stream: what it was given runs in order."""

    def __init__(self, now: float = 0.0) -> None:
        self._queue: deque[Event | float | Callable[[], bool]] = deque()
        self._until = now

    def __len__(self) -> int:
        return len(self._queue)

    def works(self, seconds: float) -> None:
        """Enqueue work; `math.inf` hangs."""
        self._queue.append(seconds)

    def waits(self, until: Callable[[], bool]) -> None:
        """Enqueue a wait until `until()` is true."""
        self._queue.append(until)

    def add(self, event: Event) -> None:
        event.done = False
        self._queue.append(event)

    def run(self, now: float) -> None:
        """Do what can be done until `now`."""
        while self._queue and self._until <= now:
            match self._queue[0]:
                case Event() as event:
                    event.done = True
                case float() as seconds:
                    self._until += seconds
                case until:
                    if not until():
                        self._until = now
                        return
            self._queue.popleft()
        if not self._queue:
            self._until = max(self._until, now)


class ImitatedDevice:
    """A device with streams, whose communicator's waits `abort` ends."""

    def __init__(self, now: float = 0.0) -> None:
        self.stream: Stream | None = Stream(now)
        """The current stream. None: it is being captured."""
        self.aborted = False
        self.failure = ""
        self.error: RuntimeError | None = None
        self.events = 0
        """Events that were created."""

    @property
    def now_stream(self) -> Stream:
        """The current stream, which is not being captured."""
        assert self.stream is not None
        return self.stream

    def enter_thread(self) -> None:
        pass

    def current(self) -> Stream | None:
        return self.stream

    def record(self, stream: Stream, event: Event | None) -> Event:
        if event is None:
            self.events += 1
            event = Event()
        stream.add(event)
        return event

    def reached(self, event: Event) -> bool:
        if self.error is not None:
            raise self.error
        return event.done

    def communicator_error(self) -> str:
        return self.failure

    def abort(self) -> None:
        self.aborted = True


class ImitatedStore:
    """One worker's access to the store that all share."""

    def __init__(self, rank: int, shared: dict[object, object]) -> None:
        self._rank, self._shared = rank, shared

    def tell(self, state: State) -> None:
        self._shared[self._rank] = state

    def read(self) -> tuple[list[State], str]:
        states = [self._shared.get(rank, ABSENT) for rank in range(int(str(self._shared["size"])))]
        return states, str(self._shared.get("blame", ""))  # type: ignore[return-value]

    def claim(self, sentence: str) -> str:
        return str(self._shared.setdefault("blame", sentence))


HANGS = math.inf
