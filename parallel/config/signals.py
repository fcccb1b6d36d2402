"""Handlers of signals for the time of a block."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any


def ignored(sign: signal.Signals) -> bool:
    """Return whether this process ignores the signal, as it does SIGHUP under nohup."""
    return signal.getsignal(sign) is signal.SIG_IGN


@contextlib.contextmanager
def handled(
    signs: Iterable[signal.Signals], handler: Callable[[int, FrameType | None], Any] | signal.Handlers
) -> Iterator[None]:
    """Handle signals so in a block. Only in the main thread."""
    before = {sign: signal.signal(sign, handler) for sign in signs}
    try:
        yield
    finally:
        for sign, former in before.items():
            signal.signal(sign, former)
