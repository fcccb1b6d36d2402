"""Messages between workers of one host through memory that both map, bypassing the network stack.

On a CPU the loopback interface takes time from the cores that compute: threads copy a message into
the kernel, through its network stack, and out again. Here the sender copies it once into a *slot*,
memory that the receiver maps as well, and sends a token (`tokens`). The receiver reads it in place
and returns a token, after which the slot may be written again.

Parameters that several neighbours hold are not copied at all: their bucket lies in memory that all
of them map, each worker updates its shard in place, and a token announces the new shard. This is
safe because a worker updates its shard when it has all gradients of the bucket, and a gradient is
sent only after backward has read the bucket's weights for the last time.

A slot is an anonymous file in memory (`memfd_create`), passed through a Unix socket. It disappears
with the processes that map it and does not count towards /dev/shm, which is 64 MB in many
containers.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from parallel.runtime.communication.tokens import Tokens, token_name
from parallel.runtime.instrumentation.clock import Clock, MessageKey

MAP_FAILED = ctypes.c_void_p(-1).value
Memory = ctypes.Array[ctypes.c_char]


def _create(nbytes: int) -> tuple[int, Memory]:
    file = os.memfd_create("parallel", os.MFD_CLOEXEC)
    os.ftruncate(file, nbytes)
    return file, _map(file, nbytes)


def _map_passed(file: int, nbytes: int) -> Memory:
    """Map a file that a neighbour has passed, and close it."""
    try:
        return _map(file, nbytes)
    finally:
        os.close(file)


def _map(file: int, nbytes: int) -> Memory:
    """Map a file until the result and all tensors in it are gone.

    Python's `mmap` keeps a duplicate of the descriptor for every mapping, and a deep network has
    hundreds of slots.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long
    libc.munmap.argtypes = ctypes.c_void_p, ctypes.c_size_t
    address = libc.mmap(None, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, file, 0)
    if address == MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)}: {nbytes} bytes of shared memory")
    memory = (ctypes.c_char * nbytes).from_address(address)
    weakref.finalize(memory, libc.munmap, address, nbytes).atexit = False
    return memory


class Slot:
    """The sender's side of the memory for one message to one peer."""

    def __init__(self, key: MessageKey, peer: int, nbytes: int, tokens: Tokens, clock: Clock) -> None:
        self._key, self._peer, self._nbytes, self._tokens = key, peer, nbytes, tokens
        self._clock = clock
        self._sent, self._read = token_name(key, "sent"), token_name(key, "read")
        file, self._memory = _create(nbytes)
        self._number = tokens.pass_file(peer, file)
        os.close(file)
        self._used = False

    def send(self, tensor: Tensor) -> None:
        """Wait until the last content has been read, copy the tensor in, and notify the peer."""
        self._wait_until_read()
        torch.frombuffer(self._memory, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)
        self._tokens.send(self._peer, self._sent, (self._number, self._nbytes, 0))
        self._used = True

    def fits(self, nbytes: int) -> bool:
        """Return whether the slot has exactly this size."""
        return nbytes == self._nbytes

    def close(self) -> None:
        """Wait until the last content has been read."""
        self._wait_until_read()

    def _wait_until_read(self) -> None:
        if self._used:
            with self._clock.blocked():
                self._tokens.wait(self._peer, self._read, self._key)
            self._used = False


class PeerSlot:
    """The receiver's side of a peer's slot."""

    def __init__(self, key: MessageKey, peer: int, tokens: Tokens) -> None:
        self._key, self._peer, self._tokens = key, peer, tokens
        self._sent, self._read = token_name(key, "sent"), token_name(key, "read")
        self._number = 0
        """Number of the mapped file."""
        self._memory: Memory | None = None

    def content(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Wait for the message and return it; it may be read until `release`."""
        number, nbytes, _ = self._tokens.wait(self._peer, self._sent, self._key)
        if self._memory is None or self._number != number:
            self._memory = _map_passed(self._tokens.take_file(self._peer, number), nbytes)
            self._number = number
        return torch.frombuffer(self._memory, dtype=dtype).view(tuple(shape))

    def release(self) -> None:
        """Tell the sender that its message has been read."""
        self._tokens.send(self._peer, self._read)


class Signal:
    """Tokens by which two workers notify each other that they have reached a point."""

    def __init__(self, key: MessageKey, peer: int, tokens: Tokens) -> None:
        self._key, self._peer, self._tokens = key, peer, tokens
        self._name = token_name(key, "signal")

    def send(self) -> None:
        self._tokens.send(self._peer, self._name)

    def wait(self) -> None:
        self._tokens.wait(self._peer, self._name, self._key)


class SharedMemory:
    """Slots of one worker's transport, created on first use."""

    def __init__(self, tokens: Tokens | None, number: int, clock: Clock) -> None:
        """`number` is that of the transport, the same on every worker."""
        self.peers = frozenset[int]() if tokens is None else tokens.peers
        self._own_tokens, self._number, self._clock = tokens, number, clock
        self._slots: dict[tuple[MessageKey, int], Slot] = {}
        self._peer_slots: dict[tuple[MessageKey, int], PeerSlot] = {}
        self._signals: dict[tuple[MessageKey, int], Signal] = {}

    @property
    def _tokens(self) -> Tokens:
        if self._own_tokens is None:
            raise RuntimeError("a worker without neighbours cannot share memory")
        return self._own_tokens

    def send(self, key: MessageKey, peer: int, tensor: Tensor) -> None:
        """Send a tensor with any strides to a neighbour."""
        key = (self._number, *key)
        slot = self._slots.get((key, peer))
        if slot is None or not slot.fits(tensor.nbytes):
            if slot is not None:
                slot.close()
            slot = self._slots[key, peer] = Slot(key, peer, tensor.nbytes, self._tokens, self._clock)
        slot.send(tensor)

    def peer_slot(self, key: MessageKey, peer: int) -> PeerSlot:
        """Return a neighbour's slot for the message `key`."""
        key = (self._number, *key)
        if (key, peer) not in self._peer_slots:
            self._peer_slots[key, peer] = PeerSlot(key, peer, self._tokens)
        return self._peer_slots[key, peer]

    def signal(self, key: MessageKey, peer: int) -> Signal:
        """Return the signal by which two workers announce new content of common memory."""
        key = (self._number, *key)
        if (key, peer) not in self._signals:
            self._signals[key, peer] = Signal(key, peer, self._tokens)
        return self._signals[key, peer]

    def common(
        self, key: MessageKey, rank: int, workers: Sequence[int], size: int, dtype: torch.dtype
    ) -> Tensor | None:
        """Return memory that all of `workers` map, or None if not all are neighbours."""
        others = [worker for worker in workers if worker != rank]
        if not others or not self.peers.issuperset(others):
            return None
        nbytes, tokens = size * dtype.itemsize, self._tokens
        made = token_name(self._number, key, "made")
        if rank == workers[0]:
            file, memory = _create(nbytes)
            for other in others:
                tokens.send(other, made, (tokens.pass_file(other, file), 0, 0))
            os.close(file)
        else:
            number, _, _ = tokens.wait(workers[0], made, key)
            memory = _map_passed(tokens.take_file(workers[0], number), nbytes)
        return torch.frombuffer(memory, dtype=dtype)

    def close(self) -> None:
        """Release the memory when all of it has been read."""
        for slot in self._slots.values():
            slot.close()
        self._slots, self._peer_slots, self._signals = {}, {}, {}
