"""Messages between workers of one host through memory that both see, instead of through the host's network stack.

On a CPU the loopback interface costs the cores that compute: a message is copied into the kernel, through its network
stack, and out again, by threads of their own. Here the sender copies it once into a *slot*, memory that the receiver
has mapped, too, and sends a token; the receiver uses it where it lies and sends a token back, after which the slot may
be written again. Tokens are gloo messages of some bytes: whatever happens to a peer is noticed as with any message.

The parameters that several neighbours hold are not even copied: their bucket lies in memory that all of them share,
each updates its shard of it, and a token says that the shard is new. (A worker updates its shard when it has all
gradients of the bucket, and those are sent when backward has read the bucket's weights for the last time: nobody still
needs the old ones.)

A slot is a file in memory without a name (`memfd_create`): it ends with the processes that hold it, and the size of
/dev/shm, 64 MB in many containers, does not limit it. The receiver opens it as /proc/PID/fd/FD, which needs Linux, one
user and one view of the processes.
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.runtime.clock import Key

Waiter = Callable[[dist.Work, Key, int], object]
"""Blocks until a token of this message with this worker is there; raises if the worker is lost."""


def _tag(key: Key, answer: bool) -> int:
    """Tokens of a key carry its tag, so that those of different messages may overtake each other."""
    return (zlib.crc32(repr(key).encode()) & 0x3FFFFFFF) << 1 | answer


def _identity(key: Key) -> int:
    return zlib.adler32(repr(key).encode())


def _create(nbytes: int) -> tuple[int, mmap.mmap]:
    file = os.memfd_create("parallel", os.MFD_CLOEXEC)
    os.ftruncate(file, nbytes)
    return file, mmap.mmap(file, nbytes)


def _open(pid: int, file: int, nbytes: int) -> mmap.mmap:
    descriptor = os.open(f"/proc/{pid}/fd/{file}", os.O_RDWR)
    try:
        return mmap.mmap(descriptor, nbytes)
    finally:
        os.close(descriptor)


class Slot:
    """The sender's side: memory for one message to one peer."""

    def __init__(self, key: Key, peer: int, nbytes: int) -> None:
        self._key, self._peer, self._nbytes = key, peer, nbytes
        self._file, self._memory = _create(nbytes)
        self._token = torch.tensor([os.getpid(), self._file, nbytes, _identity(key)])
        self._answer = torch.zeros(1, dtype=torch.int64)
        self._read: dist.Work | None = None
        self._sent: dist.Work | None = None

    def send(self, tensor: Tensor, wait: Waiter) -> None:
        """Copy the tensor in, when its last content was read, and tell the peer."""
        self._settle(wait)
        torch.frombuffer(self._memory, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)
        self._sent = dist.isend(self._token, self._peer, tag=_tag(self._key, False))
        self._read = dist.irecv(self._answer, self._peer, tag=_tag(self._key, True))

    def fits(self, nbytes: int) -> bool:
        return nbytes == self._nbytes

    def close(self, wait: Waiter) -> None:
        """Give the memory back when its last content was read."""
        self._settle(wait)
        os.close(self._file)

    def _settle(self, wait: Waiter) -> None:
        for work in (self._read, self._sent):
            if work is not None:
                wait(work, self._key, self._peer)


class Mapped:
    """The receiver's side: a peer's slot."""

    def __init__(self, key: Key, peer: int) -> None:
        self._key, self._peer = key, peer
        self._token = torch.zeros(4, dtype=torch.int64)
        self._answer = torch.zeros(1, dtype=torch.int64)
        self._opened: tuple[int, int, int] | None = None
        self._memory: mmap.mmap | None = None
        self._answered: dist.Work | None = None

    def expect(self) -> dist.Work | None:
        """Ask for the next token."""
        return dist.irecv(self._token, self._peer, tag=_tag(self._key, False))

    def content(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The message that the token announced; it may be read until `release`."""
        pid, file, nbytes, identity = self._token.tolist()
        if identity != _identity(self._key):
            raise RuntimeError(f"worker {self._peer} sent another message than {self._key}")
        if self._memory is None or self._opened != (pid, file, nbytes):
            self._memory = _open(pid, file, nbytes)
            self._opened = (pid, file, nbytes)
        return torch.frombuffer(self._memory, dtype=dtype).view(tuple(shape))

    def release(self, wait: Waiter) -> None:
        """Tell the sender that its message is used up."""
        if self._answered is not None:
            wait(self._answered, self._key, self._peer)
        self._answered = dist.isend(self._answer, self._peer, tag=_tag(self._key, True))

    def close(self, wait: Waiter) -> None:
        """Return when the last token is sent: it must outlive that."""
        if self._answered is not None:
            wait(self._answered, self._key, self._peer)


class Signal:
    """A token each way between two workers: each learns that the other has come so far."""

    def __init__(self, key: Key, peer: int) -> None:
        self._key, self._peer, self._tag = key, peer, _tag(key, False)
        self._own = torch.zeros(1, dtype=torch.int64)
        self._other = torch.zeros(1, dtype=torch.int64)
        self._sent: dist.Work | None = None

    def exchange(self, wait: Waiter) -> dist.Work | None:
        """Send the own token; the work returned ends when the other's is there."""
        if self._sent is not None:
            wait(self._sent, self._key, self._peer)
        self._sent = dist.isend(self._own, self._peer, tag=self._tag)
        return dist.irecv(self._other, self._peer, tag=self._tag)

    def close(self, wait: Waiter) -> None:
        """Return when the last token is sent: it must outlive that."""
        if self._sent is not None:
            wait(self._sent, self._key, self._peer)


class SharedMemory:
    """The slots of one worker, made when they are first needed."""

    def __init__(self, peers: frozenset[int], number: int, wait: Waiter) -> None:
        """`number` tells this worker's slots from those of its other transports: the same on every worker."""
        self.peers = peers
        self._number = number
        self._wait = wait
        self._slots: dict[tuple[Key, int], Slot] = {}
        self._mapped: dict[tuple[Key, int], Mapped] = {}
        self._signals: dict[tuple[Key, int], Signal] = {}

    def send(self, key: Key, peer: int, tensor: Tensor) -> None:
        """Hand a tensor, however it is strided, to a neighbour."""
        key = (self._number, *key)
        slot = self._slots.get((key, peer))
        if slot is None or not slot.fits(tensor.nbytes):
            if slot is not None:
                slot.close(self._wait)
            slot = self._slots[key, peer] = Slot(key, peer, tensor.nbytes)
        slot.send(tensor, self._wait)

    def mapped(self, key: Key, peer: int) -> Mapped:
        """A neighbour's slot for the message `key`."""
        key = (self._number, *key)
        if (key, peer) not in self._mapped:
            self._mapped[key, peer] = Mapped(key, peer)
        return self._mapped[key, peer]

    def release(self, mapped: Mapped) -> None:
        mapped.release(self._wait)

    def signal(self, key: Key, peer: int) -> dist.Work | None:
        """Tell a neighbour that what it shares with this worker is new; returns its own signal, to be waited for."""
        key = (self._number, *key)
        if (key, peer) not in self._signals:
            self._signals[key, peer] = Signal(key, peer)
        return self._signals[key, peer].exchange(self._wait)

    def common(self, key: Key, rank: int, workers: Sequence[int], size: int, dtype: torch.dtype) -> Tensor | None:
        """Memory that all of `workers` share, `rank` being this one; None if they are not all neighbours."""
        others = [worker for worker in workers if worker != rank]
        if not others or not self.peers.issuperset(others):
            return None
        nbytes, tag = size * dtype.itemsize, _tag((self._number, *key), False)
        answer = torch.zeros(1, dtype=torch.int64)
        token = torch.zeros(2, dtype=torch.int64)
        if rank == workers[0]:
            file, memory = _create(nbytes)
            token.copy_(torch.tensor([os.getpid(), file]))
            sent = [(dist.isend(token, other, tag=tag), other) for other in others]
            for work, other in [*sent, *((dist.irecv(answer, other, tag=tag), other) for other in others)]:
                self._settled(work, key, other)
            os.close(file)
        else:
            self._settled(dist.irecv(token, workers[0], tag=tag), key, workers[0])
            pid, file = token.tolist()
            memory = _open(pid, file, nbytes)
            self._settled(dist.isend(answer, workers[0], tag=tag), key, workers[0])
        return torch.frombuffer(memory, dtype=dtype)

    def close(self) -> None:
        """Give the memory back, when all of it was read: a slot's file would keep it as long as the process lives."""
        for slot in self._slots.values():
            slot.close(self._wait)
        for mapped in self._mapped.values():
            mapped.close(self._wait)
        for signal in self._signals.values():
            signal.close(self._wait)
        self._slots, self._mapped, self._signals = {}, {}, {}

    def _settled(self, work: dist.Work | None, key: Key, peer: int) -> None:
        if work is not None:
            self._wait(work, key, peer)
