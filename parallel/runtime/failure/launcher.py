"""A worker's watch over the launcher that started it, from the start of the command to its end.

torchrun ends its workers when it ends, unless it is killed. A worker that waits for others notices
that by itself, because the launcher's store is gone (`watch.py`), but a single worker, or one that
still opens its data, would run on. So a thread looks at the parent process twice a second.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping

LOOK_S = 0.5
"""Interval between two looks at the launcher."""
GRACE_S = 5.0
"""Time that a worker has to end by itself, with a sentence that says more, when its launcher is
gone."""


def watch_launcher(environment: Mapping[str, str]) -> None:
    """Start a thread that ends this process when the torchrun that started it is gone.

    Does nothing if torchrun did not start this process.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        launcher = os.getppid()
        name = f"worker {environment.get('RANK', '0')}"
        threading.Thread(target=_watch, args=(name, launcher), name="watch launcher", daemon=True).start()


def _watch(name: str, launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(LOOK_S)
    time.sleep(GRACE_S)
    _end(f"{name} ends: its launcher (torchrun, process {launcher}) is gone")


def _end(sentence: str) -> None:
    os.write(2, f"error: {sentence}\n".encode())
    os._exit(1)
