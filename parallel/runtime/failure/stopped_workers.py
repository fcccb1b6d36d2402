"""Killing workers that are stopped (SIGSTOP) and therefore cannot end by themselves.

When a run fails, torchrun asks its workers to end and waits 30 seconds for one that cannot hear it.
"""

from __future__ import annotations

import contextlib
import os

import psutil

SAME = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that the workers of one launcher share and that differ between
launchers."""


def kill_stopped_workers() -> None:
    """Kill the stopped workers that this worker's launcher started on this machine."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    with contextlib.suppress(psutil.NoSuchProcess):  # the launcher is gone
        for process in psutil.Process(os.getppid()).children():
            # It may have ended meanwhile, or belong to another user.
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.status() == psutil.STATUS_STOPPED and _is_worker(process.environ()):
                    process.kill()


def _is_worker(environment: dict[str, str]) -> bool:
    return "RANK" in environment and all(environment.get(name) == os.environ.get(name) for name in SAME)
