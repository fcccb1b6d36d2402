"""Imitations of a stream beside the compute stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class AtOnce:
    """A side stream that is always ahead of the compute stream."""

    def run(self, work: Callable[[], None]) -> None:
        work()


class AsLateAsPossible:
    """A side stream that is always behind: it works when the compute stream waits for its results.

    The compute stream is the host's thread, which runs what it is told at once. As a GPU, it keeps the
    order of the work.
    """

    def __init__(self) -> None:
        self.queue: deque[Callable[[], None]] = deque()
        self.started = 0

    def run(self, work: Callable[[], None]) -> None:
        self.queue.append(work)
        self.started += 1

    def finish(self) -> None:
        while self.queue:
            self.queue.popleft()()
