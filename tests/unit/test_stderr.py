"""Lines on stderr stay whole beside those of other processes."""

from __future__ import annotations

import io
import sys

import pytest

from parallel.config.stderr import print_to_stderr


class Writes(io.RawIOBase):
    """A file that keeps each write of its own."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self.pieces.append(bytes(data))  # type: ignore[call-overload]
        return len(self.pieces[-1])


def test_a_line_is_one_write_with_unbuffered_output(monkeypatch: pytest.MonkeyPatch) -> None:
    writes = Writes()
    unbuffered = io.TextIOWrapper(writes, encoding="utf-8", write_through=True)  # type: ignore[type-var]
    monkeypatch.setattr(sys, "stderr", unbuffered)
    print_to_stderr("error: worker 2 ends")
    assert writes.pieces == [b"error: worker 2 ends\n"]
