"""Lines that a process writes to stderr beside other processes."""

from __future__ import annotations

import sys


def print_to_stderr(line: str) -> None:
    """Write a line to stderr in one piece.

    With PYTHONUNBUFFERED, which images of containers set, `print` writes the end of a line apart from
    it, and the line of another worker may come between.
    """
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
