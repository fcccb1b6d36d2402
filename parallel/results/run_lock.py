"""The lock of a run directory: two runs that write into one directory would mix their rows.

The lock is the kernel's (flock), so it is released when its holder ends in any way. Child processes
that are started as new programs do not inherit it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil

LOCK = "run.lock"


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Create `run_dir` if needed and hold its lock, a file that is removed at the end.

    Raises `ValueError` if another process holds it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / LOCK
    file = _take(path)
    try:
        os.truncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def at_work(run_dir: Path) -> bool:
    """Return whether the process that the lock names runs on this host. Taking the lock to find out
    could refuse it to a run that starts now."""
    try:
        words = (run_dir / LOCK).read_text(encoding="utf-8", errors="replace").split()
    except FileNotFoundError:
        return False
    here = len(words) == 4 and words[3] == socket.gethostname() and words[1].isdecimal()
    return here and len(words[1]) < 10 and psutil.pid_exists(int(words[1]))


def _take(path: Path) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # Python closes it in new programs
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(path, file):
                return file
        except BlockingIOError:
            holder = os.read(file, 1000).decode() or "another process"
            os.close(file)
            raise ValueError(
                f"run_dir={path.parent} must not be written by two runs: {holder} is writing to it"
            ) from None
        os.close(file)  # its last holder has just removed it


def _is(path: Path, file: int) -> bool:
    """Return whether `path` is the open `file`."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False
