"""Renew something while the runs of some folders are at work."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from parallel.config import require
from parallel.results.record_files import EPOCHS, PART, RECORD
from parallel.results.run_lock import LOCK, at_work

DEFAULT_S = 5.0
LEAST_S, MOST_S = 1.0, 3600.0
QUIET_S = 60.0
"""Between two jobs of a sweep no run is at work for some seconds; after this time none follows."""


def interval_s(given: str) -> float:
    """Return the seconds of `--watch=SECONDS`, or the default for none."""
    if not given:
        return DEFAULT_S
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    require(
        LEAST_S <= value <= MOST_S,
        "--watch",
        given,
        f"must be a number of seconds from {LEAST_S:g} to {MOST_S:,g}",
    )
    return value


def watch(
    renew: Callable[[bool], object], folders: Iterable[Path], every_s: float, quiet_s: float = QUIET_S
) -> None:
    """Call `renew(False)` every `every_s` seconds while runs are at work below `folders` or have written
    within `quiet_s` seconds, then `renew(True)` once."""
    folders = list(folders)
    while not ended(folders, quiet_s):
        renew(False)
        time.sleep(every_s)
    renew(True)


def ended(folders: Iterable[Path], quiet_s: float = QUIET_S) -> bool:
    """Return whether no run below `folders` is at work, and none has written for `quiet_s` seconds.

    Runs on other hosts are at work as long as they write.
    """
    newest = 0.0
    for folder in folders:
        newest = max(newest, folder.stat().st_mtime)
        for name in (LOCK, PART, EPOCHS, RECORD):
            for file in folder.rglob(name):
                if name == LOCK and at_work(file.parent):
                    return False
                newest = max(newest, _modified(file))
    return time.time() - newest > quiet_s


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:  # a run has just ended, or written its record
        return time.time()
