"""A worker's watch over the launcher that started it, from the start of the command to its end.

torchrun ends its workers when it ends, unless it is killed. A worker that waits for others notices
that by itself, because the launcher's store is gone (`watch.py`), but a single worker, or one that
still opens its data, would run on. So a thread looks at the launcher twice a second.

`parallel.torchrun` states its own process in the environment. It need not be the worker's parent: a
program such as srun may run between them. And it may be gone before the worker, whose imports take
seconds, looks at it for the first time. torch's torchrun states nothing: there, the launcher is the
process that is the parent at the first look. So it is where the two can't see each other's
processes, in containers or on hosts of their own.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

LAUNCHER = "PARALLEL_LAUNCHER"
"""Environment variable with the process of the launcher, see `launcher_text`."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PID_NAMESPACE = Path("/proc/self/ns/pid")
LOOK_S = 0.5
"""Interval between two looks at the launcher."""
GRACE_S = 5.0
"""Time that a worker has to end by itself, with a sentence that says more, when its launcher is
gone."""


def launcher_text(run_id: str) -> str:
    """Return the text that states this process as the launcher of a run.

    It is JSON: process id, start, the processes that it sees, run id.
    """
    return json.dumps([os.getpid(), _started(os.getpid()), _visible(), run_id])


def watch_launcher(environment: Mapping[str, str]) -> None:
    """Start a thread that ends this process when the torchrun that started it is gone.

    Ends it at once if that is gone already. Does nothing if torchrun did not start this process.
    """
    if "TORCHELASTIC_RUN_ID" not in environment:
        return
    pid, runs = _stated(environment) or _parent()
    sentence = f"worker {environment.get('RANK', '0')} ends: its launcher (torchrun, process {pid}) is gone"
    if not runs():
        _end(sentence)
    threading.Thread(target=_watch, args=(runs, sentence), name="watch launcher", daemon=True).start()


def _stated(environment: Mapping[str, str]) -> tuple[int, Callable[[], bool]] | None:
    """Return the launcher that states itself, and whether it runs.

    None: it can't be seen from here, or the variable is of another run, in which this one was started.
    """
    if LAUNCHER not in environment:
        return None
    pid, started, visible, run_id = json.loads(environment[LAUNCHER])
    if visible != _visible() or run_id != environment["TORCHELASTIC_RUN_ID"]:
        return None
    return pid, lambda: _started(pid) == started


def _parent() -> tuple[int, Callable[[], bool]]:
    pid = os.getppid()
    return pid, lambda: os.getppid() == pid


def _started(pid: int) -> str | None:
    """Return when a process started: a later one with its id has another text. None: it has ended."""
    if sys.platform != "linux":
        try:
            return str(psutil.Process(pid).create_time())
        except psutil.NoSuchProcess:
            return None
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # proc(5): fields 3 and 22, after the name, which may have spaces. Unlike psutil's time, which is
    # one of the day, ticks since the start of the machine stay the same when its clock is set.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def _visible() -> str:
    """Return a text that processes with the same process ids share: kernel and namespace."""
    boot = BOOT_ID.read_text().strip() if BOOT_ID.is_file() else socket.gethostname()
    return f"{boot} {os.readlink(PID_NAMESPACE) if PID_NAMESPACE.is_symlink() else ''}"


def _watch(runs: Callable[[], bool], sentence: str) -> None:
    while runs():
        time.sleep(LOOK_S)
    time.sleep(GRACE_S)
    _end(sentence)


def _end(sentence: str) -> None:
    os.write(2, f"error: {sentence}\n".encode())
    os._exit(1)
