"""Run a command to its end, and leave nothing of it behind when it, or this process, is stopped.

torchrun puts each worker into a session of its own, so that no process group holds the whole tree. Every process of
the tree inherits a mark in its environment instead, by which Linux finds the ones that outlived the command.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

MARK = "PARALLEL_PROCESS_TREE"
STOPS = (signal.SIGTERM, signal.SIGHUP)
"""Signals that end this process, besides Ctrl-C, which Python turns into KeyboardInterrupt."""


class Stopped(SystemExit):
    """This process was told to end; the exit code is the shell's, 128 + the signal's number."""


def run(command: Sequence[str], environment: Mapping[str, str], grace_s: float) -> int:
    """Run `command` with this process's console and return its exit code (negative: the signal that ended it).

    After a failure, Ctrl-C or SIGTERM nothing of its process tree is left: it is asked to end, and killed after
    `grace_s` seconds. The command gets a session of its own, so that a Ctrl-C on the terminal reaches it only from
    here, once.
    """
    mark = secrets.token_hex(8)
    process: subprocess.Popen[bytes] | None = None
    with _stops_raise():
        try:
            process = subprocess.Popen(command, env={**environment, MARK: mark}, start_new_session=True)
            code = process.wait()
        except BaseException:
            with _stops_ignored():
                _end(process, mark, grace_s)
            raise
    if code != 0:
        _end(process, mark, grace_s)
    return code


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
            # A process loses its environment, and with it the mark, a moment before it has ended.
            seen.update(marked(mark))
            if (process is None or process.poll() is not None) and not any(runs(pid) for pid in seen):
                return
            time.sleep(0.05)


def runs(pid: int) -> bool:
    """Whether the process has not ended; one that its parent has not asked for (a zombie) has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except OSError:
        return False


def marked(mark: str) -> list[int]:
    """The living processes that carry `mark`. Needs Linux's /proc; elsewhere none are found."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue  # ended meanwhile, or another user's
        if wanted in environment.split(b"\0"):
            found.append(int(folder.name))
    return found


@contextlib.contextmanager
def _stops_raise() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(128 + number)

    before = {sign: signal.signal(sign, stop) for sign in STOPS}
    try:
        yield
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)


@contextlib.contextmanager
def _stops_ignored() -> Iterator[None]:
    """While the tree is being ended, another Ctrl-C must not leave half of it: the end comes within seconds anyway."""
    signs = (*STOPS, signal.SIGINT)
    before = {sign: signal.signal(sign, signal.SIG_IGN) for sign in signs}
    try:
        yield
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)
