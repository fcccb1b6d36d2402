"""Calls that may never return, with a limit.

torch's client of the launcher's store has a timeout for missing keys, but none for a store whose
process or machine is stopped or cut off.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from parallel.runtime.failure.running_clock import RunningClock

T = TypeVar("T")

LOOK_S = 0.05
"""Interval between two looks at the call. Python handles signals then."""


class NoAnswer(Exception):
    """Raised if a call has not returned in time."""


def call_in_time(call: Callable[[], T], seconds: float, looks: Callable[[], None] = lambda: None) -> T:
    """Return `call()`, and call `looks` while it waits. Raises what it raises, and `NoAnswer` if it
    has not returned within `seconds` for which this process has run.

    The call is made in a thread, which ends with the process if it is blocked.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, name="call in time", daemon=True)
    thread.start()
    now = RunningClock()
    limit = now() + seconds
    while thread.is_alive() and now() < limit:
        thread.join(min(LOOK_S, seconds))
        looks()
    if errors:
        raise errors[0]
    if not results:
        raise NoAnswer(f"no answer within {seconds:g} s")
    return results[0]
