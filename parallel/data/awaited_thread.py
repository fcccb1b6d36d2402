"""A background thread that never outlives the interpreter."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable

POLL_S = 0.001


class AwaitedThread:
    """Run a function in a thread for whose end a program waits, also when an exception ends the program.

    A daemon thread that is inside torch while the interpreter exits aborts the process, and Ctrl-C
    then ends it with SIGABRT. A thread that is no daemon would be waited for before anything can tell
    it to end.
    """

    def __init__(self, run: Callable[[], None], name: str, tell_to_end: Callable[[], None]) -> None:
        """At the end of the program, `tell_to_end` is called before the thread is waited for."""
        self._run, self._tell_to_end = run, tell_to_end
        self._ended = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        atexit.register(self._at_exit)
        self._thread.start()

    def join(self) -> None:
        """Wait for the end of the function."""
        self._thread.join()
        # Before Python 3.13, a join that Ctrl-C interrupted makes all later ones return at once.
        while not self._ended:
            time.sleep(POLL_S)
        atexit.unregister(self._at_exit)

    def _work(self) -> None:
        try:
            self._run()
        finally:
            self._ended = True

    def _at_exit(self) -> None:
        self._tell_to_end()
        self.join()
