"""A worker's watch over the others: it tells them this worker's state and knows when one of them is lost.

The states travel through the key-value store that the launcher keeps, beside the process group. The first worker that
knows who is to blame (`verdict.py`) writes it there, and all of them end with that sentence: the ones that are blocked
in a message, too, and one that hangs somewhere else but whose threads run. A process group's own timeout would end
only those that wait, each naming the worker that it happens to wait for.

When the launcher ends the workers because one of them died, the signal is held back until they have said which.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import FrameType

from torch.distributed import DistError

from parallel.runtime.failure.blame import BEAT_S, BROKEN_S, SILENT_S, State, Trouble, judge
from parallel.runtime.failure.errors import RunEnded, WorkerLost
from parallel.runtime.failure.siblings import kill_stopped
from parallel.runtime.failure.store import Board

BLOCKED_S = 5 * BEAT_S
"""How long a worker may stay blocked when the run is over, before its process is ended from the thread. The ends of the
others unblock it, if it waits for them."""
CLEAN_UP_S = 15.0
"""How long it may take to close its files once it knows."""
TOLD_S = SILENT_S + 2 * BEAT_S
"""How long a worker that was told to end may look for the reason: the launcher tells it when another has died."""


class Silent:
    """What a single worker has: nobody to watch."""

    timeout: timedelta | None = None
    """How long a message may be waited for; None: for ever."""

    @property
    def over(self) -> bool:
        """It is known who is to blame that the run cannot go on."""
        return False

    def at(self, where: str) -> None:
        """This worker is now in `where`: step 17."""

    def does(self, what: str) -> None:
        """This worker is now busy with `what`: loading data."""

    def waits(self, key: tuple[object, ...], peer: int) -> None:
        """This worker waits for the message `key` with the worker `peer`; −1: with any."""

    def goes_on(self) -> None:
        """It waits, or loads, no more."""

    def lost(self, error: RuntimeError) -> WorkerLost:
        """What to raise for an error of the process group. Blocks until it is known whose fault it is."""
        return WorkerLost(str(error))


class Watch(Silent):
    """One worker's side."""

    def __init__(self, rank: int, size: int, timeout_s: float, start_timeout_s: float) -> None:
        """Joins the store, and tells the others that this worker is there.

        A message may be waited for `start_timeout_s` until `started`, and for `timeout_s` after. Raises `RuntimeError`
        if the store cannot be reached.
        """
        self._rank, self._timeout_s = rank, timeout_s
        self.timeout = timedelta(seconds=start_timeout_s)
        self._where, self._doing, self._since = "the start", "computing", time.monotonic()
        self._waits: tuple[tuple[object, ...], int] | None = None
        self._error: tuple[RuntimeError, float] | None = None
        self._own_failure = ""
        self._told, self._told_at = 0, 0.0
        self._done = False
        self._verdict, self._verdict_at = "", 0.0
        self._reachable = True
        self._known, self._news, self._closing = (threading.Event() for _ in range(3))
        self._beat = 0
        self._seen: dict[int, tuple[State, float]] = {}
        """Per worker, its last state and when it came."""
        self._answered = time.monotonic()
        self._wakes, self._wake_up = socket.socketpair()
        self._wakes.settimeout(BEAT_S)
        self._wake_up.setblocking(False)
        self._restore_signal: Callable[[], object] = lambda: None
        self._restore_wakeup: Callable[[], object] = lambda: None
        self._board = Board(rank, size, max(timeout_s, SILENT_S))
        self._board.tell(self._state())
        self._threads = [threading.Thread(target=run, name=f"watch {run.__name__}", daemon=True)
                         for run in (self._exchange, self._guard)]

    @property
    def over(self) -> bool:
        return self._known.is_set()

    # What the worker's own thread calls.

    def start(self) -> None:
        """Begin to watch; call it when every worker has joined."""
        self._take_signals()
        self._answered = time.monotonic()
        for thread in self._threads:
            thread.start()

    def started(self) -> timedelta:
        """What takes long at the start is over: from now on `timeout_s` counts."""
        self.timeout = timedelta(seconds=self._timeout_s)
        return self.timeout

    def at(self, where: str) -> None:
        self._where = where
        self.goes_on()

    def does(self, what: str) -> None:
        self._doing, self._waits, self._since = what, None, time.monotonic()

    def waits(self, key: tuple[object, ...], peer: int) -> None:
        self._waits, self._since = (key, peer), time.monotonic()

    def goes_on(self) -> None:
        self._doing, self._waits, self._since = "computing", None, time.monotonic()

    def lost(self, error: RuntimeError) -> WorkerLost:
        self._error = error, time.monotonic()
        self._news.set()
        if not self._known.wait(max(self._timeout_s, SILENT_S) + BROKEN_S):
            return WorkerLost(self._own(f"the process group failed, and nobody knows why: {error}"), reachable=False)
        return WorkerLost(self._own(self._verdict), self._reachable)

    def failed(self, error: BaseException) -> None:
        """Tell the others that this worker ends because of `error`; the first to tell is to blame."""
        if not isinstance(error, WorkerLost):
            said = str(error) if isinstance(error, RunEnded) else f"{type(error).__name__}: {error}".rstrip(": ")
            self._own_failure = f"worker {self._rank} failed in {self._where}: {said}"
            self._news.set()
            self._known.wait(4 * BEAT_S)
        self._stop()

    def close(self) -> None:
        """The run has ended in order, on every worker."""
        self._done = True
        self._stop()
        self._restore_signal()  # after a failure it stays held back: what is to be said comes first

    def _stop(self) -> None:
        self._closing.set()
        self._news.set()
        with contextlib.suppress(BlockingIOError):  # it is full of reasons to wake up
            self._wake_up.send(b"\0")
        for thread in self._threads:
            thread.join(4 * BEAT_S)
        self._restore_wakeup()

    def _own(self, verdict: str) -> str:
        return f"worker {self._rank} ends in {self._where}: {verdict}"

    # Signals. Python runs their handlers in the main thread, which may be blocked; the thread hears of them at once.

    def _take_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _heard)
            self._restore_signal = lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL)
        before = signal.set_wakeup_fd(self._wake_up.fileno(), warn_on_full_buffer=False)
        self._restore_wakeup = lambda: signal.set_wakeup_fd(before)

    # The guard: a thread that never blocks.

    def _guard(self) -> None:
        before = time.monotonic()
        while not self._closing.is_set():
            now = time.monotonic()
            if now - before > SILENT_S:  # this process was stopped for a while, not the store
                self._answered = now
            before = now
            self._enforce(now)
            with contextlib.suppress(TimeoutError):
                for number in self._wakes.recv(4096):
                    if number in (signal.SIGTERM, signal.SIGINT) and not self._told:
                        self._told, self._told_at = number, time.monotonic()
                        self._news.set()

    def _enforce(self, now: float) -> None:
        """End the process where its own thread does not."""
        if not self._verdict and now - self._answered > max(self._timeout_s, SILENT_S):
            self._store_is_gone(f"for {now - self._answered:.1f} s")
        if self._verdict:
            knows = self._error is not None or bool(self._own_failure)
            if now - self._verdict_at > (CLEAN_UP_S if knows else BLOCKED_S):
                self._exit(self._verdict, 1)
        elif self._told:
            others = [state for rank, (state, _) in self._seen.items() if rank != self._rank]
            all_told = self._told == signal.SIGTERM and all(state.told or state.done for state in others)
            if all_told or now - self._told_at > (CLEAN_UP_S if self._told == signal.SIGINT else TOLD_S):
                self._exit("" if all_told else f"it was told to end (signal {self._told})", 128 + self._told)

    def _exit(self, why: str, code: int) -> None:
        if why:
            os.write(2, f"error: {self._own(why)}\n".encode())
        os._exit(code)

    # The messenger: a thread that blocks when the store does not answer.

    def _exchange(self) -> None:
        try:
            while not self._closing.is_set():
                self._news.clear()
                self._beat_once()
                self._news.wait(BEAT_S)
            self._beat_once()
        except RuntimeError as error:  # the store's, c10d's network errors among them
            if not self._done:  # the last to leave may find that the launcher has closed it
                self._store_is_gone(str(error).splitlines()[0][:120])

    def _beat_once(self) -> None:
        now = time.monotonic()
        if now - self._answered > SILENT_S:  # this process was stopped for a while, not the others
            self._seen = {rank: (state, now) for rank, (state, _) in self._seen.items()}
        self._beat += 1
        self._board.tell(self._state())
        states, verdict = self._board.read()
        now = time.monotonic()
        for rank, state in enumerate(states):
            if rank not in self._seen or self._seen[rank][0] != state:
                self._seen[rank] = state, now
        if not verdict and not self._done:
            found = self._own_failure or judge(
                self._rank, dict(enumerate(states)), {rank: now - at for rank, (_, at) in self._seen.items()},
                self._timeout_s, self._trouble(now), self._told == signal.SIGTERM)
            verdict = self._board.claim(found) if found else ""
        if verdict:
            self._know(verdict)
        self._answered = time.monotonic()

    def _trouble(self, now: float) -> Trouble | None:
        if self._error is None:
            return None
        error, at = self._error
        text = str(error).lower()
        return Trouble(now - at, "timed out" not in text and "timeout" not in text, self._what()[0])

    def _state(self) -> State:
        doing, waits = self._what()
        return State(self._beat, self._where, doing, time.monotonic() - self._since, waits or self._error is not None,
                     bool(self._told), self._done)

    def _what(self) -> tuple[str, bool]:
        """What this worker is doing, and whether that is waiting."""
        if (waits := self._waits) is None:
            return self._doing, False
        key, peer = waits
        return f"waiting for {'the others' if peer < 0 else f'worker {peer}'}: {describe(key)}", True

    def _know(self, verdict: str) -> None:
        if not self._verdict:
            self._verdict, self._verdict_at = verdict, time.monotonic()
            self._known.set()
            kill_stopped()

    def _store_is_gone(self, how: str) -> None:
        self._reachable = False
        doing, waits = self._what()
        self._know(f"the store at {self._board.address} does not answer ({how}), so that the machine or launcher of "
                   "worker 0 is gone" + (f"; it was {doing}" if waits else ""))


def _heard(number: int, frame: FrameType | None) -> None:
    """The thread deals with it."""


def describe(key: Sequence[object]) -> str:
    """What a message is for, from its key."""
    match key:
        case (int(), int(), ">" | "<" as way):
            return f"exchange {key[0]} of micro-batch {key[1]}, {'forward' if way == '>' else 'backward'}"
        case ("sum", int()):
            return f"gradients of bucket {key[1]}"
        case ("gather", int()):
            return f"weights of bucket {key[1]}"
    return " ".join(map(str, key))


def is_about_peers(error: RuntimeError) -> bool:
    """Whether the error comes from the process group: gloo's have no class of their own, but its sources' paths."""
    return isinstance(error, DistError) or "gloo" in str(error) or "pair closure" in str(error)
