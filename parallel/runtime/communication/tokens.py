"""Tokens: short messages between workers of one host, through pipes; and files, through sockets.

A message of the process group wakes one of the group's threads, which competes with the worker for
its core and then wakes it in turn: a millisecond on a machine whose cores are all busy. With a pipe
the kernel wakes the worker itself. A worker that ends closes its pipes, so its peers notice at
once.

Two neighbours have a pipe in each direction and a Unix socket. The reader of a pipe creates it and
passes the writing end through the socket, as it later passes files in memory. Tokens have names and
may be awaited in any order.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
import zlib
from collections import defaultdict, deque
from collections.abc import Mapping
from datetime import timedelta

from parallel.runtime.failure.null_watch import NullWatch
from parallel.runtime.instrumentation.clock import MessageKey

Numbers = tuple[int, int, int]
_FORMAT = struct.Struct("=Q3q")
_AT_ONCE = 64 * _FORMAT.size
_FILE_NUMBER = struct.Struct("=q")
_PIPE = 0
"""Number under which the writing end of a pipe is passed; files have numbers from 1."""
SLEEP_S = 0.25
"""Longest sleep between two checks of whether the run is over."""


def token_name(*key: object) -> int:
    """Return the 64-bit name of a token, the same in every process."""
    text = repr(key).encode()
    return zlib.crc32(text) << 32 | zlib.adler32(text)


class Tokens:
    """Sends and receives tokens and files of one worker."""

    def __init__(self, sockets: Mapping[int, socket.socket], watch: NullWatch) -> None:
        """`sockets` lead to the neighbours.

        Every neighbour must construct its own before `open`.
        """
        self._sockets, self._watch = sockets, watch
        self._reads: dict[int, int] = {}
        self._writes: dict[int, int] = {}
        self._passed = _PIPE
        self._files: dict[tuple[int, int], int] = {}
        """Received files that have not been taken, by neighbour and number."""
        self._arrived: dict[int, defaultdict[int, deque[Numbers]]] = {}
        self._poll = {peer: select.poll() for peer in sockets}
        for peer, own in sockets.items():
            own.setblocking(False)
            self._reads[peer], write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            self._arrived[peer] = defaultdict(deque)
            self._poll[peer].register(self._reads[peer], select.POLLIN)
            socket.send_fds(own, [_FILE_NUMBER.pack(_PIPE)], [write])
            os.close(write)  # the only copy is the neighbour's, so its end closes the pipe

    def open(self) -> None:
        """Take the writing ends of the pipes to the neighbours, which all have sent them."""
        self._writes = {peer: self.take_file(peer, _PIPE) for peer in self._sockets}

    @property
    def peers(self) -> frozenset[int]:
        """The neighbours."""
        return frozenset(self._sockets)

    def send(self, peer: int, name: int, numbers: Numbers = (0, 0, 0)) -> None:
        """Send a token. Raises `WorkerLost`."""
        token = _FORMAT.pack(name, *numbers)
        begin = self._watch.now()
        try:
            while not self._written(peer, token):
                self._make_room(begin)
        except (RuntimeError, OSError) as error:
            raise self._watch.lost(_broken(peer, error)) from error

    def _written(self, peer: int, token: bytes) -> bool:
        try:
            os.write(self._writes[peer], token)  # atomic: it is shorter than PIPE_BUF
        except BlockingIOError:
            return False
        return True

    def pass_file(self, peer: int, file: int) -> int:
        """Give a neighbour access to an open file and return the number to `take_file` it by.

        The number must reach the neighbour in a token that is sent afterwards. Raises `WorkerLost`.
        """
        self._passed += 1
        begin = self._watch.now()
        try:
            while not self._file_passed(peer, file):
                self._make_room(begin)
        except (RuntimeError, OSError) as error:
            raise self._watch.lost(_broken(peer, error)) from error
        return self._passed

    def _file_passed(self, peer: int, file: int) -> bool:
        try:
            socket.send_fds(self._sockets[peer], [_FILE_NUMBER.pack(self._passed)], [file])
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:  # as many files in transit as a process may open
                raise
            return False
        return True

    def take_file(self, peer: int, number: int) -> int:
        """Return a file that a neighbour has passed. The caller closes it. Raises `WorkerLost`."""
        try:
            while (peer, number) not in self._files:
                if not self._receive_file(peer):
                    raise RuntimeError(f"it has not passed file {number}")
        except (RuntimeError, OSError) as error:
            raise self._watch.lost(_broken(peer, error)) from error
        return self._files.pop((peer, number))

    def _receive_file(self, peer: int) -> bool:
        """Receive a file from a neighbour; return False if there is none."""
        try:
            message, files, *_ = socket.recv_fds(self._sockets[peer], _FILE_NUMBER.size, 1)
        except BlockingIOError:
            return False
        if not message:
            raise RuntimeError("it closed its connection")
        if not files:
            raise RuntimeError("this worker may open no more files: see ulimit -n")
        os.set_inheritable(files[0], False)
        self._files[peer, _FILE_NUMBER.unpack(message)[0]] = files[0]
        return True

    def wait(self, peer: int, name: int, key: MessageKey) -> Numbers:
        """Wait for the next token of this name from a neighbour; `key` is its purpose.

        Raises `WorkerLost`.
        """
        arrived = self._arrived[peer][name]
        if not arrived:
            self._watch.waits(key, peer)
            begin = self._watch.now()
            try:
                while not arrived:
                    if not self._read(peer) and not self._poll[peer].poll(1000 * SLEEP_S):
                        self._check(begin)
            except (RuntimeError, OSError) as error:
                raise self._watch.lost(_broken(peer, error)) from error
            self._watch.goes_on()
        return arrived.popleft()

    def _make_room(self, begin: float) -> None:
        """Read all that neighbours have sent: one may be blocked by a full pipe to this worker."""
        for peer in self._reads:
            self._read(peer)
            self._receive_file(peer)
        self._check(begin)
        time.sleep(0)

    def _check(self, begin: float) -> None:
        """Raise if the run is over, or if this wait, since `begin`, has timed out."""
        timeout: timedelta | None = self._watch.timeout
        if self._watch.over:
            raise RuntimeError("the run is over")
        if timeout is not None and self._watch.now() - begin > timeout.total_seconds():
            raise RuntimeError(f"timed out after {timeout.total_seconds():g} s")

    def _read(self, peer: int) -> bool:
        """Read the tokens that a neighbour has sent; return False if there are none."""
        try:
            found = os.read(self._reads[peer], _AT_ONCE)
        except BlockingIOError:
            return False
        if not found:
            raise RuntimeError("it closed its connection")
        for name, *numbers in _FORMAT.iter_unpack(found):
            self._arrived[peer][name].append((numbers[0], numbers[1], numbers[2]))
        return True

    def close(self) -> None:
        """Close pipes and sockets. No neighbour may be waiting."""
        for end in (*self._reads.values(), *self._writes.values(), *self._files.values()):
            os.close(end)
        for own in self._sockets.values():
            own.close()


def _broken(peer: int, error: Exception) -> RuntimeError:
    return RuntimeError(f"no token from or to worker {peer}: {error}")
