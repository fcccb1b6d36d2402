"""Tokens: messages of some numbers between workers of one host, through pipes.

A message of the process group wakes one of its threads, which computes beside the worker and then wakes it in its
turn: a millisecond on a machine whose cores all compute. Here the kernel wakes the worker itself. A worker that ends
closes its pipes, so the others know at once.

Every two neighbours have a pipe each way. Its reader makes it; the writer opens it as /proc/PID/fd/FD, which needs
Linux, one user and one view of the processes. Tokens are named, and may be waited for in another order than they come.
"""

from __future__ import annotations

import os
import select
import struct
import time
import zlib
from collections import defaultdict, deque
from collections.abc import Mapping
from datetime import timedelta

from parallel.runtime.failure.watch import NullWatch
from parallel.runtime.instrumentation.clock import MessageKey

Numbers = tuple[int, int, int]
_FORMAT = struct.Struct("=Q3q")
_AT_ONCE = 64 * _FORMAT.size
SLEEP_S = 0.25
"""How long it sleeps at a time, to see in between whether the run is over."""


def token_name(*key: object) -> int:
    """The 64-bit name of a token, the same in every process."""
    text = repr(key).encode()
    return zlib.crc32(text) << 32 | zlib.adler32(text)


class Inbox:
    """The reading end of the pipes, before the neighbours have opened the writing ends."""

    def __init__(self, peers: frozenset[int]) -> None:
        ends = {peer: os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) for peer in sorted(peers)}
        self.reads = {peer: read for peer, (read, _) in ends.items()}
        self._writes = {peer: write for peer, (_, write) in ends.items()}

    @property
    def address(self) -> tuple[int, dict[int, int]]:
        """What the neighbours need: this process, and per neighbour the end that it writes to."""
        return os.getpid(), self._writes

    def opened(self) -> None:
        """The neighbours have theirs: without this worker's copies, it sees when they end."""
        for write in self._writes.values():
            os.close(write)
        self._writes = {}


class Tokens:
    """Sends and receives the tokens of one worker."""

    def __init__(self, rank: int, inbox: Inbox, addresses: Mapping[int, tuple[int, Mapping[int, int]]],
                 watch: NullWatch) -> None:
        """`addresses` are the neighbours' inboxes'."""
        self._reads = inbox.reads
        self._writes = {peer: os.open(f"/proc/{pid}/fd/{ends[rank]}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                        for peer, (pid, ends) in addresses.items()}
        self._watch = watch
        self._came: dict[int, defaultdict[int, deque[Numbers]]] = {
            peer: defaultdict(deque) for peer in self._reads}
        self._poll = {peer: select.poll() for peer in self._reads}
        for peer, poll in self._poll.items():
            poll.register(self._reads[peer], select.POLLIN)

    @property
    def peers(self) -> frozenset[int]:
        """The neighbours."""
        return frozenset(self._reads)

    def send(self, peer: int, name: int, numbers: Numbers = (0, 0, 0)) -> None:
        """Send a token. Raises `WorkerLost`."""
        token = _FORMAT.pack(name, *numbers)
        begin = time.monotonic()
        try:
            while not self._written(peer, token):
                # The pipe is full of what the neighbour has not read: it may be as stuck with one to this worker.
                for other in self._reads:
                    self._read(other)
                self._check(begin)
                time.sleep(0)
        except (RuntimeError, OSError) as error:
            raise self._watch.lost(_broken(peer, error)) from error

    def _written(self, peer: int, token: bytes) -> bool:
        try:
            os.write(self._writes[peer], token)  # whole or not at all: it is shorter than PIPE_BUF
        except BlockingIOError:
            return False
        return True

    def wait(self, peer: int, name: int, key: MessageKey) -> Numbers:
        """The next token of this name from a neighbour; `key` is what it is for. Raises `WorkerLost`."""
        came = self._came[peer][name]
        if not came:
            self._watch.waits(key, peer)
            begin = time.monotonic()
            try:
                while not came:
                    if not self._read(peer) and not self._poll[peer].poll(1000 * SLEEP_S):
                        self._check(begin)
            except (RuntimeError, OSError) as error:
                raise self._watch.lost(_broken(peer, error)) from error
            self._watch.goes_on()
        return came.popleft()

    def _check(self, begin: float) -> None:
        """Raise if this wait has no end."""
        timeout: timedelta | None = self._watch.timeout
        if self._watch.over:
            raise RuntimeError("the run is over")
        if timeout is not None and time.monotonic() - begin > timeout.total_seconds():
            raise RuntimeError(f"timed out after {timeout.total_seconds():g} s")

    def _read(self, peer: int) -> bool:
        """Put what a neighbour has sent to what came; whether there was anything."""
        try:
            found = os.read(self._reads[peer], _AT_ONCE)
        except BlockingIOError:
            return False
        if not found:
            raise RuntimeError("it closed its connection")
        for name, *numbers in _FORMAT.iter_unpack(found):
            self._came[peer][name].append((numbers[0], numbers[1], numbers[2]))
        return True

    def close(self) -> None:
        """Close the pipes, when no neighbour waits any more."""
        for end in (*self._reads.values(), *self._writes.values()):
            os.close(end)


def _broken(peer: int, error: Exception) -> RuntimeError:
    return RuntimeError(f"no token from or to worker {peer}: {error}")
