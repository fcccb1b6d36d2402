"""Threads at the end of a program. Checkpoints, which are written by one, are tested in test_checkpoint_saving.py."""

import subprocess
import sys

from tests.support.commands import ROOT, variables

READS_AHEAD = """
import sys, torch
from parallel.data.prefetch import Prefetch
square = torch.ones(200, 200)
def items():
    while True:
        yield square @ square
ahead = Prefetch(items(), 10**6, lambda: None)
next(ahead)
sys.exit(130)
"""

IS_INTERRUPTED = """
import signal, time
from parallel.data.awaited_thread import AwaitedThread
signal.signal(signal.SIGALRM, signal.default_int_handler)
thread = AwaitedThread(lambda: [time.sleep(2), print("worked")], "two seconds", lambda: None)
signal.setitimer(signal.ITIMER_REAL, 0.2)
try:
    thread.join()
except KeyboardInterrupt:
    print("interrupted")
thread.join()
print("joined")
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], env=variables(), cwd=ROOT, capture_output=True, text=True
    )


def test_a_program_can_end_while_its_thread_computes() -> None:
    """A thread that comes out of torch while the interpreter exits would abort the process."""
    ended = run(READS_AHEAD)
    assert (ended.returncode, ended.stderr) == (130, "")


def test_a_thread_is_waited_for_after_an_interrupt() -> None:
    assert run(IS_INTERRUPTED).stdout.split() == ["interrupted", "worked", "joined"]
