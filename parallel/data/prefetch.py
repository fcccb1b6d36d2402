"""An iterator that works ahead in a background thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

from parallel.data.awaited_thread import AwaitedThread

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Iterate over `items` in a thread, up to `depth` items ahead of the consumer.

    The thread calls `setup` first. It ends with the items, at `close` or when the interpreter exits.
    An error in `items` is raised to the consumer after the items that precede it.

    Ctrl-C may interrupt the consumer anywhere, and it must not leave anything locked that the thread
    waits for: hence simple queues, and no condition.
    """

    def __init__(self, items: Iterator[T], depth: int, setup: Callable[[], None]) -> None:
        self._items, self._setup = items, setup
        self._ready: SimpleQueue[tuple[T] | None] = SimpleQueue()
        """Items, then None."""
        self._room: SimpleQueue[None] = SimpleQueue()
        for _ in range(depth):
            self._room.put(None)
        self._closed = False
        self._error: BaseException | None = None
        self._thread = AwaitedThread(self._work, "prefetch", self._tell_to_end)

    def _work(self) -> None:
        try:
            self._setup()
            for item in self._items:
                self._room.get()
                if self._closed:
                    break
                self._ready.put((item,))
        except BaseException as error:
            self._error = error
        finally:
            self._ready.put(None)

    def __iter__(self) -> Prefetch[T]:
        return self

    def __next__(self) -> T:
        entry = self._ready.get()
        if entry is not None:
            self._room.put(None)
            return entry[0]
        self._ready.put(None)
        if self._error is not None:
            raise self._error
        raise StopIteration

    def close(self) -> None:
        """End the thread after its current item, and drop the items that are ready."""
        self._tell_to_end()
        self._thread.join()
        self._ready = SimpleQueue()
        self._ready.put(None)

    def _tell_to_end(self) -> None:
        self._closed = True
        self._room.put(None)
