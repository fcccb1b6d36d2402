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

On GPUs a third thread asks what the streams of the device have reached (`stream_marks.py`). Once the blame
is known, every worker aborts its communicators: this unblocks a host thread that waits for a stream that waits
for another worker, and it ends with the blame at its next note to the watch. A thread that stays blocked
ends with its process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import DistBackendError

from parallel.config import invalid_input
from parallel.runtime.failure.activity import Activity
from parallel.runtime.failure.blame import (
    BEAT_S,
    BROKEN_S,
    SILENT_S,
    State,
    Symptom,
    find_blame,
    read_refusal,
    refusal,
)
from parallel.runtime.failure.device_errors import describe_device_error
from parallel.runtime.failure.errors import (
    DeviceFailed,
    InputRefused,
    InstructionFailed,
    RunEnded,
    WorkerLost,
)
from parallel.runtime.failure.gpu import Device
from parallel.runtime.failure.host_names import describe_host, numbered_host, workers_per_host
from parallel.runtime.failure.null_watch import NullWatch, heard, take_signals
from parallel.runtime.failure.running_clock import RunningClock
from parallel.runtime.failure.stopped_workers import kill_stopped_workers
from parallel.runtime.failure.stopping import STOP_SIGNALS, Stopping
from parallel.runtime.failure.store import StateStore, store_address
from parallel.runtime.failure.stream_marks import StreamMarks
from parallel.runtime.failure.wording import describe_error, is_about_peers

BLOCKED_S = 5 * BEAT_S
"""Time that a worker may stay blocked after the run is over, before the guard ends its process. A
worker that waits for others is unblocked when they end."""
STOP_POLL_S = 0.02
"""Interval at which a worker between two steps looks whether all agree on the step to stop at."""
POLL_S = 0.1
"""Interval at which a device is asked what its streams have reached."""
CLEAN_UP_S = 15.0
"""Time that a worker has to close its files once it knows the blame."""
TOLD_S = SILENT_S + 2 * BEAT_S
"""Time that a worker has to find the reason after it was told to end: the launcher does so when
another worker died."""


class Watch(NullWatch):
    """The watch of one of several workers."""

    def __init__(
        self,
        rank: int,
        size: int,
        timeout_s: float,
        start_timeout_s: float,
        device: Device | None = None,
        clock: RunningClock | None = None,
    ) -> None:
        """Waiting for a message is limited to `start_timeout_s` until `started` is called, and to
        `timeout_s` afterwards. `device`: the GPU; None: the worker computes on the CPU."""
        self._rank, self._size, self._timeout_s = rank, size, timeout_s
        self._host, self._per_host = numbered_host(), workers_per_host(rank, size)
        self._clock = RunningClock() if clock is None else clock
        self.timeout = timedelta(seconds=start_timeout_s)
        self._device = device
        self._marks = None if device is None else StreamMarks(device, self.now)
        self._activity = Activity(self.now, self._marks)
        self._error: tuple[RuntimeError, float] | None = None
        self._own_failure = ""
        self._ends = False
        """Whether the main thread knows that the run has failed, and is closing its files."""
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
            for run in (self._heartbeat, self._guard, *([] if device is None else [self._poll]))
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
        self._end_if_over()
        self._activity.at(where)

    def does(self, what: str) -> None:
        self._end_if_over()
        self._activity.does(what)

    def waits(self, key: tuple[object, ...], peer: int) -> None:
        self._end_if_over()
        self._activity.waits(key, peer)

    def goes_on(self) -> None:
        self._end_if_over()
        self._activity.goes_on()

    def _end_if_over(self) -> None:
        """Raise `WorkerLost` if the run has failed: aborted communicators complete waits without the
        message."""
        if self._device is not None and self._known.is_set():
            raise self._lost()

    def lost(self, error: RuntimeError) -> WorkerLost:
        if (own := describe_device_error(error)) is not None:
            self._fails(self._activity.where, own)
        else:
            self._error = error, self.now()
        self._news.set()
        limit = self.now() + max(self._timeout_s, SILENT_S) + BROKEN_S
        while not self._known.wait(BEAT_S):
            if self.now() > limit:
                sentence = f"the process group failed for an unknown reason: {error}"
                return WorkerLost(self._own(sentence), reachable=False)
        return self._lost()

    def _lost(self) -> WorkerLost:
        self._ends = True
        return self._ending()

    def _ending(self) -> WorkerLost:
        """Return what the blame means for this worker."""
        hosts = {rank: state.host for rank, (state, _) in self._seen.copy().items()}
        refused = read_refusal(self._blame, hosts, self._host)
        if refused is not None:
            return InputRefused(refused)
        return WorkerLost(self._own(self._blame), self._reachable)

    def stops(self, done: int) -> bool:
        if not self._stopping.between_steps(done):
            return False
        while self._stopping.agreed is None:
            if self._known.wait(STOP_POLL_S):
                raise self._lost()
        return done >= self._stopping.agreed

    def instead_of(self, error: Exception) -> Exception:
        """Return what ends this worker in place of an exception of its main thread."""
        if isinstance(error, RunEnded):
            return error
        root = error.__cause__ if isinstance(error, InstructionFailed) else error
        if self._device is not None and self._known.is_set() and _follows_abort(root):
            return self._lost()
        if (own := describe_device_error(error)) is not None:
            return DeviceFailed(f"worker {self._rank} failed in {self._activity.where}", own)
        if isinstance(root, RuntimeError) and is_about_peers(root):  # raised by DDP
            return self.lost(root)
        return error

    def failed(self, error: BaseException) -> None:
        """Publish that this worker ends because of `error`.

        The first worker to do so is to blame. If its input is invalid, the others end as it does.
        """
        self._ends = True
        if not isinstance(error, WorkerLost):
            invalid = invalid_input(error)
            if invalid is None:
                self._fails(self._activity.where, describe_error(error))
            elif not self._own_failure:
                self._own_failure = refusal(self._rank, invalid)
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
        if blame == self._own_failure:
            return blame
        return f"worker {self._rank} ends in {self._activity.now.where}: {blame}"

    def _fails(self, where: str, why: str) -> None:
        if not self._own_failure:
            self._own_failure = f"worker {self._rank} failed in {where}: {why}"

    # Signals. Python runs handlers in the main thread, which may be blocked; the guard learns of a
    # signal at once.

    def _take_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._restore_signals = take_signals(heard)
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
            if now - self._blamed_at > (CLEAN_UP_S if self._ends else BLOCKED_S):
                ending = self._ending()
                self._exit(str(ending), 2 if isinstance(ending, InputRefused) else 1)
        elif self._told and self._stopping.agreed is None:
            others = [state for rank, (state, _) in self._seen.items() if rank != self._rank]
            in_steps = self._stopping.stated is not None
            all_told = self._told in STOP_SIGNALS and all(state.told or state.done for state in others)
            if (all_told and not in_steps) or now - self._told_at > (
                CLEAN_UP_S if self._told == signal.SIGINT else TOLD_S
            ):
                why = "" if all_told else self._own(f"it was told to end (signal {self._told})")
                self._exit(why, 128 + self._told)

    def _exit(self, why: str, code: int) -> None:
        if why:
            os.write(2, f"error: {why}\n".encode())
        os._exit(code)

    # A thread that asks the device, and blocks when the driver does not answer.

    def _poll(self) -> None:
        if self._device is None:
            return
        try:
            self._device.enter_thread()
        except RuntimeError as error:
            self._device_fails(error)
            return
        while not self._closing.wait(POLL_S) and self.ask_device():
            pass

    def ask_device(self) -> bool:
        """Ask the device what it has reached. Return whether it still works."""
        if self._device is None or self._marks is None:
            return False
        try:
            self._marks.poll()
            failure = self._device.communicator_error()
        except RuntimeError as error:  # the main thread may be blocked, and not notice it
            self._device_fails(error)
            return False
        # A timeout tells of waits of which the watch was not told. It counts the time of a stop, too.
        if failure and self._error is None and not ("timed out" in failure and self._clock.was_stopped):
            self._error = DistBackendError(failure), self.now()
            self._news.set()
        return True

    def _device_fails(self, error: RuntimeError) -> None:
        self._fails(self._activity.now.where, describe_error(error))
        self._news.set()

    # The heartbeat: a thread that blocks when the store does not answer.

    def _heartbeat(self) -> None:
        try:
            store = StateStore(self._rank, self._size, max(self._timeout_s, SILENT_S))
            while not self._closing.is_set():
                self._news.clear()
                self.beat(store)
                self._news.wait(BEAT_S)
            self.beat(store)
        except ValueError as error:
            host, port = store_address()
            self._know(f"the store at {host}:{port} holds what no worker writes, {error}")
        except RuntimeError as error:  # from the store, including c10d's network errors
            if not self._done:  # otherwise the launcher may have closed the store already
                self._store_is_gone(str(error).splitlines()[0][:120])

    def beat(self, store: StateStore) -> None:
        """Publish this worker's state, read those of the others, and find who is to blame."""
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
                self._per_host,
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
        return Symptom(now - at, "timed out" not in text and "timeout" not in text, str(self._activity.now))

    def _long_wait(self, now: float) -> Symptom | None:
        """Return this worker's wait if it has lasted too long. gloo would not notice that."""
        doing, timeout = self._activity.now, self.timeout
        if doing.awaited is None or timeout is None or now - doing.since <= timeout.total_seconds():
            return None
        return Symptom(now - doing.since - timeout.total_seconds(), broken=False, waiting_for=str(doing))

    def _state(self) -> State:
        doing = self._activity.now
        return State(
            self._beat,
            doing.where,
            str(doing),
            self.now() - doing.since,
            doing.awaited is not None or self._error is not None,
            bool(self._told),
            self._done,
            self._stopping.stated,
            self._host,
        )

    def _know(self, blame: str) -> None:
        if not self._blame:
            self._blame, self._blamed_at = blame, self.now()
            self._known.set()
            if self._device is not None:
                threading.Thread(target=self._abort, name="watch abort", daemon=True).start()
            kill_stopped_workers()

    def _abort(self) -> None:
        """Abort the communicators, in a thread of its own: NCCL may block it."""
        if self._device is not None:
            with contextlib.suppress(RuntimeError):  # the guard ends a process that stays blocked
                self._device.abort()

    def _store_is_gone(self, how: str) -> None:
        self._reachable = False
        doing = self._activity.now
        address, port = store_address()
        first = self._seen[0][0].host if 0 in self._seen else ""
        if first and first != self._host:
            workers = [rank for rank, (state, _) in self._seen.items() if state.host == first]
            where = f"{describe_host(first, workers)}, or its launcher, is gone or cut off from this host"
        else:
            where = "the host or launcher of worker 0 is gone"
        self._know(
            f"the store at {address}:{port} does not answer ({how}), so that {where}"
            + (f"; it was {doing}" if doing.awaited is not None else "")
        )


def _follows_abort(error: BaseException | None) -> bool:
    """Return whether an aborted communicator can raise this: torch also says that there is no process group."""
    return not isinstance(error, ValueError) or "process group" in str(error).lower()
