"""Run a command, and end its whole process tree when it fails or this process is stopped.

torchrun starts each worker in its own session, so no process group covers the whole tree. Instead,
every process of the tree inherits a mark in its environment, which also finds processes that
outlived the command. (macOS shows a process only its own environment: there, those are not found.)

A command that calls `end_with_parent` ends its tree also when this process is killed.

A stopped torchrun (SIGSTOP) does not notice that its workers have ended, and the wait for it would
never return. There is nothing left to stop, so it is continued; then it ends as usual and reports
the workers' errors.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import FrameType

import psutil

from parallel.config.signals import handled, ignored
from parallel.config.stderr import print_to_stderr

MARK = "PARALLEL_PROCESS_TREE"
STOPS = (signal.SIGTERM, signal.SIGHUP)
"""Signals that end this process unless it ignores them (nohup), in addition to Ctrl-C, which raises
KeyboardInterrupt."""
PARENT = "PARALLEL_PROCESS_TREE_PARENT"
"""Environment variable with the process that called `run`."""
LOOK_S = 1.0
"""Interval between two looks at another process."""
ENDED = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


class Stopped(SystemExit):
    """Raised when a signal ends this process. The exit code is 128 + the number of the signal."""


class Tree:
    """A command with all processes that it starts."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._mark = secrets.token_hex(8)
        self._process: subprocess.Popen[bytes] | None = None

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], output: int | None = None
    ) -> subprocess.Popen[bytes]:
        """Start the command, with its output on this console or to `output` (as `subprocess.PIPE`)."""
        self._process = subprocess.Popen(
            command,
            env={**environment, MARK: self._mark, PARENT: str(os.getpid())},
            start_new_session=True,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
        )
        return self._process

    def end(self) -> None:
        """Terminate all processes, and kill those that have not ended within `grace_s` seconds."""
        _end(self._process, self._mark, self._grace_s)


def run(command: Sequence[str], environment: Mapping[str, str], grace_s: float) -> int:
    """Run `command` on this console and return its exit code (negative: the signal that ended it).

    After a failure, Ctrl-C or SIGTERM, the whole process tree is terminated, and killed if it has
    not ended within `grace_s` seconds. The command runs in its own session: a Ctrl-C on the
    terminal reaches only this process, which then ends the command.
    """
    tree = Tree(grace_s)
    with stops_raise():
        try:
            process = tree.start(command, environment)
            with continued(process.pid):
                code = process.wait()
        except BaseException:
            with stops_ignored():
                tree.end()
            raise
    if code != 0:
        tree.end()
    return code


@contextlib.contextmanager
def continued(pid: int) -> Iterator[None]:
    """Continue the command whenever it is stopped and none of its children runs."""
    returned = threading.Event()

    def look() -> None:
        while not returned.wait(LOOK_S):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                command = psutil.Process(pid)
                if command.status() == psutil.STATUS_STOPPED and not any(
                    runs(child.pid) for child in command.children()
                ):
                    command.resume()

    thread = threading.Thread(target=look, name="continue", daemon=True)
    thread.start()
    try:
        yield
    finally:
        returned.set()
        thread.join()


def _end(process: subprocess.Popen[bytes] | None, mark: str, grace_s: float) -> None:
    if process is not None and process.poll() is None:
        process.send_signal(signal.SIGTERM)  # torchrun passes it on to every worker's process group
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    for sign, wait_s in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 10.0)):
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
        seen = set(marked(mark))
        for pid in seen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            # A process loses its environment, and the mark with it, shortly before it ends.
            seen.update(marked(mark))
            if (process is None or process.poll() is not None) and not any(runs(pid) for pid in seen):
                return
            time.sleep(0.05)


def end_with_parent() -> None:
    """Start a thread that sends SIGTERM to this process when the process that called `run` ends."""
    parent = int(os.environ[PARENT])

    def look() -> None:
        while runs(parent):
            time.sleep(LOOK_S)
        print_to_stderr(f"error: the sweep (process {parent}) is gone: its job ends")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, name="end with parent", daemon=True).start()


def runs(pid: int) -> bool:
    """Return whether the process is running. A zombie is not."""
    try:
        return psutil.Process(pid).status() not in ENDED
    except psutil.NoSuchProcess:
        return False


def marked(mark: str) -> list[int]:
    """Return the processes with `mark`, as far as this user may read their environments."""
    return [
        process.pid
        for process in psutil.process_iter(["environ"])
        if (process.info["environ"] or {}).get(MARK) == mark
    ]


@contextlib.contextmanager
def stops_raise() -> Iterator[None]:
    """Raise `Stopped` in this, the main thread when a signal of `STOPS` arrives."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(128 + number)

    with handled([sign for sign in STOPS if not ignored(sign)], stop):
        yield


def stops_ignored() -> AbstractContextManager[None]:
    """Ignore signals while the tree is being ended, so that another Ctrl-C cannot leave part of it.

    The end takes only seconds.
    """
    return handled((*STOPS, signal.SIGINT), signal.SIG_IGN)


@contextlib.contextmanager
def stops_deferred(until: str) -> Iterator[None]:
    """Hold signals back while a block must not be left half done, then raise the first one again.

    `until` tells the user what is still waited for.
    """
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        os.write(2, f"{signal.Signals(number).name}: this command ends {until}\n".encode())

    with handled([sign for sign in (*STOPS, signal.SIGINT) if not ignored(sign)], hear):
        yield
    if heard:
        signal.raise_signal(heard[0])
