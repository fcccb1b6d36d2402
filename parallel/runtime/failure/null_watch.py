"""The watch of a worker without peers, and the notes that every watch takes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from types import FrameType

from parallel.runtime.failure.device_errors import describe_device_error
from parallel.runtime.failure.errors import DeviceFailed, WorkerLost
from parallel.runtime.failure.stopping import STOP_SIGNALS, Stopping


class NullWatch:
    """The watch of a single worker, which has no peers."""

    timeout: timedelta | None = None
    """Time limit of waiting for a message; None: no limit."""

    @property
    def over(self) -> bool:
        """Whether the run has failed and the blame is known."""
        return False

    def now(self) -> float:
        """Return the time by which waits are limited, in seconds."""
        return time.monotonic()

    def at(self, where: str) -> None:
        """Note that this worker is now in `where`, such as step 17."""

    def does(self, what: str) -> None:
        """Note that this worker is now busy with `what`, such as loading data."""

    def waits(self, key: tuple[object, ...], peer: int) -> None:
        """Note that this worker waits for the message `key` with `peer`; −1: with any worker."""

    def goes_on(self) -> None:
        """Note that this worker is computing again."""

    def stops(self, done: int) -> bool:
        """Return whether all workers stop now that `done` steps are done, because one was asked to.

        Call it on all workers before every step. Blocks while they agree on the step.
        """
        return False

    def lost(self, error: RuntimeError) -> WorkerLost:
        """Return what to raise for an error of the process group.

        Blocks until the blame is known.
        """
        return WorkerLost(str(error))

    def instead_of(self, error: Exception) -> Exception:
        """Return what ends this worker in place of an exception of its main thread."""
        return error


class SingleWatch(NullWatch):
    """The watch of a worker that has no peers: it hears when it is asked to stop."""

    def __init__(self) -> None:
        self._stopping = Stopping()
        self._restore = take_signals(self._heard)
        self._where = "the start"

    def at(self, where: str) -> None:
        self._where = where

    def instead_of(self, error: Exception) -> Exception:
        described = describe_device_error(error)
        return error if described is None else DeviceFailed(f"worker 0 failed in {self._where}", described)

    def stops(self, done: int) -> bool:
        return self._stopping.between_steps(done)

    def close(self) -> None:
        """Stop listening."""
        self._restore()

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self._stopping.want()
        if self._stopping.stated is None:  # no step has begun: nothing to save
            self._restore()
            os.kill(os.getpid(), number)


def take_signals(handler: Callable[[int, FrameType | None], object]) -> Callable[[], None]:
    """Handle the signals that ask a worker to stop, where nobody else does; return how to undo it."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    taken = [number for number in STOP_SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, handler)

    def restore() -> None:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)

    return restore


def heard(number: int, frame: FrameType | None) -> None:
    """Do nothing: the guard handles the signal."""
