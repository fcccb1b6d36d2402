"""Messages between workers of one host through memory that both see, instead of through the host's network stack.

On a CPU the loopback interface costs the cores that compute: a message is copied into the kernel, through its network
stack, and out again, by threads of their own. Here the sender copies it once into a *slot*, memory that the receiver
has mapped, too, and sends a token (`tokens`); the receiver uses it where it lies and sends a token back, after which
the slot may be written again.

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
from collections.abc import Sequence

import torch
from torch import Tensor

from parallel.runtime.communication.tokens import Tokens, token_name
from parallel.runtime.instrumentation.clock import MessageKey


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

    def __init__(self, key: MessageKey, peer: int, nbytes: int, tokens: Tokens) -> None:
        self._key, self._peer, self._nbytes, self._tokens = key, peer, nbytes, tokens
        self._sent, self._read = token_name(key, "sent"), token_name(key, "read")
        self._file, self._memory = _create(nbytes)
        self._used = False

    def send(self, tensor: Tensor) -> None:
        """Copy the tensor in, when its last content was read, and tell the peer."""
        self._wait_until_read()
        torch.frombuffer(self._memory, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)
        self._tokens.send(self._peer, self._sent, (os.getpid(), self._file, self._nbytes))
        self._used = True

    def fits(self, nbytes: int) -> bool:
        return nbytes == self._nbytes

    def close(self) -> None:
        """Give the memory back when its last content was read."""
        self._wait_until_read()
        os.close(self._file)

    def _wait_until_read(self) -> None:
        if self._used:
            self._tokens.wait(self._peer, self._read, self._key)
            self._used = False


class PeerSlot:
    """The receiver's side: a peer's slot."""

    def __init__(self, key: MessageKey, peer: int, tokens: Tokens) -> None:
        self._key, self._peer, self._tokens = key, peer, tokens
        self._sent, self._read = token_name(key, "sent"), token_name(key, "read")
        self._opened: tuple[int, int, int] | None = None
        self._memory: mmap.mmap | None = None

    def content(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Wait for the message; it may be read until `release`."""
        where = self._tokens.wait(self._peer, self._sent, self._key)
        if self._memory is None or self._opened != where:
            self._memory = _open(*where)
            self._opened = where
        return torch.frombuffer(self._memory, dtype=dtype).view(tuple(shape))

    def release(self) -> None:
        """Tell the sender that its message is used up."""
        self._tokens.send(self._peer, self._read)


class Signal:
    """A token each way between two workers: each learns that the other has come so far."""

    def __init__(self, key: MessageKey, peer: int, tokens: Tokens) -> None:
        self._key, self._peer, self._tokens = key, peer, tokens
        self._name = token_name(key, "signal")

    def send(self) -> None:
        self._tokens.send(self._peer, self._name)

    def wait(self) -> None:
        self._tokens.wait(self._peer, self._name, self._key)


class SharedMemory:
    """The slots of one worker, made when they are first needed."""

    def __init__(self, tokens: Tokens | None, number: int) -> None:
        """`number` tells this worker's slots from those of its other transports: the same on every worker."""
        self.peers = frozenset[int]() if tokens is None else tokens.peers
        self._own_tokens, self._number = tokens, number
        self._slots: dict[tuple[MessageKey, int], Slot] = {}
        self._mapped: dict[tuple[MessageKey, int], PeerSlot] = {}
        self._signals: dict[tuple[MessageKey, int], Signal] = {}

    @property
    def _tokens(self) -> Tokens:
        if self._own_tokens is None:
            raise RuntimeError("a worker without neighbours has nobody to share memory with")
        return self._own_tokens

    def send(self, key: MessageKey, peer: int, tensor: Tensor) -> None:
        """Hand a tensor, however it is strided, to a neighbour."""
        key = (self._number, *key)
        slot = self._slots.get((key, peer))
        if slot is None or not slot.fits(tensor.nbytes):
            if slot is not None:
                slot.close()
            slot = self._slots[key, peer] = Slot(key, peer, tensor.nbytes, self._tokens)
        slot.send(tensor)

    def mapped(self, key: MessageKey, peer: int) -> PeerSlot:
        """A neighbour's slot for the message `key`."""
        key = (self._number, *key)
        if (key, peer) not in self._mapped:
            self._mapped[key, peer] = PeerSlot(key, peer, self._tokens)
        return self._mapped[key, peer]

    def signal(self, key: MessageKey, peer: int) -> Signal:
        """By which a neighbour and this worker tell each other that what they share is new."""
        key = (self._number, *key)
        if (key, peer) not in self._signals:
            self._signals[key, peer] = Signal(key, peer, self._tokens)
        return self._signals[key, peer]

    def common(self, key: MessageKey, rank: int, workers: Sequence[int], size: int,
               dtype: torch.dtype) -> Tensor | None:
        """Memory that all of `workers` share, `rank` being this one; None if they are not all neighbours."""
        others = [worker for worker in workers if worker != rank]
        if not others or not self.peers.issuperset(others):
            return None
        nbytes, tokens = size * dtype.itemsize, self._tokens
        made, mapped = token_name(self._number, key, "made"), token_name(self._number, key, "mapped")
        if rank == workers[0]:
            file, memory = _create(nbytes)
            for other in others:
                tokens.send(other, made, (os.getpid(), file, nbytes))
            for other in others:
                tokens.wait(other, mapped, key)
            os.close(file)
        else:
            memory = _open(*tokens.wait(workers[0], made, key))
            tokens.send(workers[0], mapped)
        return torch.frombuffer(memory, dtype=dtype)

    def close(self) -> None:
        """Give the memory back, when all of it was read: a slot's file would keep it as long as the process lives."""
        for slot in self._slots.values():
            slot.close()
        self._slots, self._mapped, self._signals = {}, {}, {}
