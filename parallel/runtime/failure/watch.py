"""A worker's watch over the others: it publishes a state and detects when a worker is lost.

States travel through the launcher's key-value store, independently of the process group. The first
worker that knows who is to blame (`blame.py`) writes it there, and all workers end with that
sentence, including workers that are blocked in a message and a worker that hangs elsewhere while
its threads run. A process group's own timeout would end only the workers that wait, each naming the
worker that it happens to wait for. It would also count the time for which the whole job is stopped,
which the watch's clock does not (`running_clock.py`).

When the launcher ends the workers because one of them died, the signal is deferred until they have
named that worker. If all are alive, they stop after the same step and save their state
(`stopping.py`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from types import FrameType

from parallel.runtime.failure.blame import BEAT_S, BROKEN_S, SILENT_S, State, Symptom, find_blame
from parallel.runtime.failure.errors import WorkerLost
from parallel.runtime.failure.running_clock import RunningClock
from parallel.runtime.failure.stopped_workers import kill_stopped_workers
from parallel.runtime.failure.stopping import STOP_SIGNALS, Stopping
from parallel.runtime.failure.store import StateStore, store_address
from parallel.runtime.failure.wording import describe_error, describe_message

BLOCKED_S = 5 * BEAT_S
"""Time that a worker may stay blocked after the run is over, before the guard ends its process. A
worker that waits for others is unblocked when they end."""
STOP_POLL_S = 0.02
"""Interval at which a worker between two steps looks whether all agree on the step to stop at."""
CLEAN_UP_S = 15.0
"""Time that a worker has to close its files once it knows the blame."""
TOLD_S = SILENT_S + 2 * BEAT_S
"""Time that a worker has to find the reason after it was told to end: the launcher does so when
another worker died."""


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


class SingleWatch(NullWatch):
    """The watch of a worker that has no peers: it hears when it is asked to stop."""

    def __init__(self) -> None:
        self._stopping = Stopping()
        self._restore = _take(self._heard)

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


class Watch(NullWatch):
    """The watch of one of several workers."""

    def __init__(self, rank: int, size: int, timeout_s: float, start_timeout_s: float) -> None:
        """Waiting for a message is limited to `start_timeout_s` until `started` is called, and to
        `timeout_s` afterwards."""
        self._rank, self._size, self._timeout_s = rank, size, timeout_s
        self._clock = RunningClock()
        self.timeout = timedelta(seconds=start_timeout_s)
        self._where, self._doing, self._since = "the start", "computing", self.now()
        self._waits: tuple[tuple[object, ...], int, float] | None = None
        """Message that this worker waits for, the worker at the other end, and since when."""
        self._error: tuple[RuntimeError, float] | None = None
        self._own_failure = ""
        self._told, self._told_at = 0, 0.0
        self._done = False
        self._blame, self._blamed_at = "", 0.0
        self._reachable = True
        self._known, self._news, self._closing = (threading.Event() for _ in range(3))
        self._beat = 0
        self._seen: dict[int, tuple[State, float]] = {}
        """Last state of each worker, and when it was read."""
        self._answered = self.now()
        self._wakes, self._wake_up = socket.socketpair()
        self._wakes.settimeout(BEAT_S)
        self._wake_up.setblocking(False)
        self._stopping = Stopping()
        self._restore_signals: Callable[[], object] = lambda: None
        self._restore_wakeup: Callable[[], object] = lambda: None
        self._threads = [
            threading.Thread(target=run, name=f"watch {run.__name__}", daemon=True)
            for run in (self._heartbeat, self._guard)
        ]

    @property
    def over(self) -> bool:
        return self._known.is_set()

    def now(self) -> float:
        return self._clock()

    # Called from the worker's main thread.

    def start(self) -> None:
        """Start watching, also for workers that have not joined yet."""
        self._take_signals()
        self._answered = self.now()
        for thread in self._threads:
            thread.start()

    def started(self) -> timedelta:
        """Apply `timeout_s` from now on, the slow start being over; return it."""
        self.timeout = timedelta(seconds=self._timeout_s)
        return self.timeout

    def at(self, where: str) -> None:
        self._where = where
        self.goes_on()

    def does(self, what: str) -> None:
        self._doing, self._waits, self._since = what, None, self.now()

    def waits(self, key: tuple[object, ...], peer: int) -> None:
        self._since = self.now()
        self._waits = key, peer, self._since

    def goes_on(self) -> None:
        self._doing, self._waits, self._since = "computing", None, self.now()

    def lost(self, error: RuntimeError) -> WorkerLost:
        self._error = error, self.now()
        self._news.set()
        limit = self.now() + max(self._timeout_s, SILENT_S) + BROKEN_S
        while not self._known.wait(BEAT_S):
            if self.now() > limit:
                sentence = f"the process group failed for an unknown reason: {error}"
                return WorkerLost(self._own(sentence), reachable=False)
        return WorkerLost(self._own(self._blame), self._reachable)

    def stops(self, done: int) -> bool:
        if not self._stopping.between_steps(done):
            return False
        while self._stopping.agreed is None:
            if self._known.wait(STOP_POLL_S):
                raise WorkerLost(self._own(self._blame), self._reachable)
        return done >= self._stopping.agreed

    def failed(self, error: BaseException) -> None:
        """Publish that this worker ends because of `error`.

        The first worker to do so is to blame.
        """
        if not isinstance(error, WorkerLost):
            self._own_failure = f"worker {self._rank} failed in {self._where}: {describe_error(error)}"
            self._news.set()
            self._known.wait(4 * BEAT_S)
        self._stop()

    def close(self) -> None:
        """Stop watching: the run has ended in order on every worker."""
        self._done = True
        self._stop()
        self._restore_signals()  # after a failure the signal stays deferred: the message comes first

    def _stop(self) -> None:
        self._closing.set()
        self._news.set()
        with contextlib.suppress(BlockingIOError):  # full: the guard wakes up anyway
            self._wake_up.send(b"\0")
        for thread in self._threads:
            thread.join(4 * BEAT_S)
        self._restore_wakeup()

    def _own(self, blame: str) -> str:
        return f"worker {self._rank} ends in {self._where}: {blame}"

    # Signals. Python runs handlers in the main thread, which may be blocked; the guard learns of a
    # signal at once.

    def _take_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._restore_signals = _take(_heard)
        before = signal.set_wakeup_fd(self._wake_up.fileno(), warn_on_full_buffer=False)
        self._restore_wakeup = lambda: signal.set_wakeup_fd(before)

    # The guard: a thread that never blocks for long.

    def _guard(self) -> None:
        while not self._closing.is_set():
            self._enforce(self.now())
            with contextlib.suppress(TimeoutError):
                for number in self._wakes.recv(4096):
                    if number in (*STOP_SIGNALS, signal.SIGINT) and not self._told:
                        self._told, self._told_at = number, self.now()
                        if number in STOP_SIGNALS:
                            self._stopping.want()
                        self._news.set()

    def _enforce(self, now: float) -> None:
        """End the process where its main thread does not."""
        if not self._blame and now - self._answered > max(self._timeout_s, SILENT_S):
            self._store_is_gone(f"for {now - self._answered:.1f} s")
        if self._blame:
            knows = self._error is not None or bool(self._own_failure)
            if now - self._blamed_at > (CLEAN_UP_S if knows else BLOCKED_S):
                self._exit(self._blame, 1)
        elif self._told and self._stopping.agreed is None:
            others = [state for rank, (state, _) in self._seen.items() if rank != self._rank]
            in_steps = self._stopping.stated is not None
            all_told = self._told in STOP_SIGNALS and all(state.told or state.done for state in others)
            if (all_told and not in_steps) or now - self._told_at > (
                CLEAN_UP_S if self._told == signal.SIGINT else TOLD_S
            ):
                self._exit("" if all_told else f"it was told to end (signal {self._told})", 128 + self._told)

    def _exit(self, why: str, code: int) -> None:
        if why:
            os.write(2, f"error: {self._own(why)}\n".encode())
        os._exit(code)

    # The heartbeat: a thread that blocks when the store does not answer.

    def _heartbeat(self) -> None:
        try:
            store = StateStore(self._rank, self._size, max(self._timeout_s, SILENT_S))
            while not self._closing.is_set():
                self._news.clear()
                self._beat_once(store)
                self._news.wait(BEAT_S)
            self._beat_once(store)
        except RuntimeError as error:  # from the store, including c10d's network errors
            if not self._done:  # otherwise the launcher may have closed the store already
                self._store_is_gone(str(error).splitlines()[0][:120])

    def _beat_once(self, store: StateStore) -> None:
        self._beat += 1
        store.tell(self._state())
        states, blame = store.read()
        now = self.now()
        for rank, state in enumerate(states):
            if rank not in self._seen or self._seen[rank][0] != state:
                self._seen[rank] = state, now
        self._stopping.hear([state.stops for state in states])
        if not blame and not self._done:
            found = self._own_failure or find_blame(
                self._rank,
                dict(enumerate(states)),
                {rank: now - at for rank, (_, at) in self._seen.items()},
                self._timeout_s,
                self._symptom(now),
                self._told in STOP_SIGNALS,
            )
            blame = store.claim(found) if found else ""
        if blame:
            self._know(blame)
        self._answered = self.now()

    def _symptom(self, now: float) -> Symptom | None:
        if self._error is None:
            return self._long_wait(now)
        error, at = self._error
        text = str(error).lower()
        return Symptom(now - at, "timed out" not in text and "timeout" not in text, self._what()[0])

    def _long_wait(self, now: float) -> Symptom | None:
        """Return this worker's wait if it has lasted too long. gloo would not notice that."""
        waits, timeout = self._waits, self.timeout
        if waits is None or timeout is None or now - waits[-1] <= timeout.total_seconds():
            return None
        return Symptom(now - waits[-1] - timeout.total_seconds(), broken=False, waiting_for=self._what()[0])

    def _state(self) -> State:
        doing, waits = self._what()
        return State(
            self._beat,
            self._where,
            doing,
            self.now() - self._since,
            waits or self._error is not None,
            bool(self._told),
            self._done,
            self._stopping.stated,
        )

    def _what(self) -> tuple[str, bool]:
        """Return what this worker is doing, and whether that is waiting."""
        if (waits := self._waits) is None:
            return self._doing, False
        key, peer, _ = waits
        return f"waiting for {'the others' if peer < 0 else f'worker {peer}'}: {describe_message(key)}", True

    def _know(self, blame: str) -> None:
        if not self._blame:
            self._blame, self._blamed_at = blame, self.now()
            self._known.set()
            kill_stopped_workers()

    def _store_is_gone(self, how: str) -> None:
        self._reachable = False
        doing, waits = self._what()
        host, port = store_address()
        self._know(
            f"the store at {host}:{port} does not answer ({how}), so that the machine or "
            "launcher of worker 0 is gone" + (f"; it was {doing}" if waits else "")
        )


def _take(handler: Callable[[int, FrameType | None], object]) -> Callable[[], None]:
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


def _heard(number: int, frame: FrameType | None) -> None:
    """Do nothing: the guard handles the signal."""
