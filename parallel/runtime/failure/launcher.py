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
import threading
import time
from collections.abc import Callable, Mapping

from parallel.config.process import Process
from parallel.runtime.failure.host_names import kernel_namespace

LAUNCHER = "PARALLEL_LAUNCHER"
"""Environment variable with the process of the launcher, see `launcher_text`."""
LOOK_S = 0.5
"""Interval between two looks at the launcher."""
GRACE_S = 5.0
"""Time that a worker has to end by itself, with a sentence that says more, when its launcher is
gone."""


def launcher_text(run_id: str) -> str:
    """Return the text that states this process as the launcher of a run.

    It is JSON: process id, start, the namespace of process ids, run id.
    """
    own = Process.of(os.getpid())
    return json.dumps([own.pid, own.started, kernel_namespace("pid"), run_id])


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
    pid, started, seen_in, run_id = json.loads(environment[LAUNCHER])
    if seen_in != kernel_namespace("pid") or run_id != environment["TORCHELASTIC_RUN_ID"]:
        return None
    return pid, lambda: Process(pid, started).lives


def _parent() -> tuple[int, Callable[[], bool]]:
    pid = os.getppid()
    return pid, lambda: os.getppid() == pid


def _watch(runs: Callable[[], bool], sentence: str) -> None:
    while runs():
        time.sleep(LOOK_S)
    time.sleep(GRACE_S)
    _end(sentence)


def _end(sentence: str) -> None:
    os.write(2, f"error: {sentence}\n".encode())
    os._exit(1)
