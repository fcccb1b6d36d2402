"""Point-to-point messages between workers, without a copy where the part of a tensor is contiguous.

Every exchange and gradient sync is a set of sends and receives that start together. With gloo this
moves large buffers 1.4 to 4 times faster than its collectives (`docs/performance.md`) and needs no
group for every subset of workers. NCCL runs the set as one grouped call, like its own all-to-all.
CPU workers of one host exchange tensors through shared memory (`shared_memory`).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.runtime.communication.shared_memory import PeerSlot, SharedMemory, Signal
from parallel.runtime.communication.world import World
from parallel.runtime.instrumentation.clock import Clock, MessageKey

UNLIMITED = timedelta(days=365)
"""gloo counts the time for which the whole job is stopped, and its connections do not outlive a
timeout. So the watch limits waits."""
SENT_AHEAD = 2
"""Messages of one exchange that may be in transit to a worker that lags behind."""


@dataclass(frozen=True)
class Receive:
    """A tensor to receive."""

    peer: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    into: Tensor | None = None
    """Contiguous destination; None: any memory."""


class Message:
    """Sends and receives in transit."""

    def __init__(self, key: MessageKey, sources: Sequence[int]) -> None:
        self.key = key
        self.sources = sources
        self.works: list[tuple[dist.Work, int]] = []
        """Works and the worker at the other end; −1 if one work is for all of them."""
        self.kept: list[Tensor] = []
        """Tensors being sent, which must outlive the transfer."""
        self.received: list[Tensor | None] = []
        """None: comes through shared memory, see `expected`."""
        self.expected: list[tuple[Receive, PeerSlot]] = []
        self.signals: list[Signal] = []
        self.borrowed: list[PeerSlot] = []


class Transport:
    """Starts messages, waits for them, and counts the bytes that they send to other workers."""

    def __init__(self, world: World, clock: Clock) -> None:
        self._clock = clock
        self._watch = world.watch
        self._gloo = world.backend == "gloo"
        self._device = world.device
        self._number = next(world.transports)
        self._shared = SharedMemory(world.tokens, self._number)
        self._only_sent: defaultdict[MessageKey, deque[Message]] = defaultdict(deque)
        """Messages without receives, by the part of the key that micro-batches share."""
        self.bytes_sent = 0

    def start(
        self, key: MessageKey, sends: Sequence[tuple[int, Tensor]], receives: Sequence[Receive]
    ) -> Message:
        """Start sending tensors to workers and receiving from others.

        Each pair of workers must start its messages in the same order. `key` names the message on
        every worker.
        """
        self._clock.started(key)
        self.bytes_sent += sum(tensor.nbytes for _, tensor in sends)
        message = Message(key, [receive.peer for receive in receives])
        try:
            self._start(message, sends, receives)
        except RuntimeError as error:  # from gloo, when the connection is already broken
            raise self._watch.lost(error) from error
        if self._gloo and message.works and not receives:
            self._keep_few(message)
        return message

    def _start(
        self, message: Message, sends: Sequence[tuple[int, Tensor]], receives: Sequence[Receive]
    ) -> None:
        operations: list[tuple[Any, Tensor, int]] = []
        for receive in receives:
            if receive.peer in self._shared.peers:
                message.expected.append((receive, self._shared.peer_slot(message.key, receive.peer)))
                message.received.append(None)
                continue
            buffer = receive.into
            if buffer is None:
                buffer = torch.empty(receive.shape, dtype=receive.dtype, device=self._device)
            message.received.append(buffer)
            operations.append((dist.irecv, buffer, receive.peer))
        for peer, tensor in sends:
            if peer in self._shared.peers:
                self._shared.send(message.key, peer, tensor)
                continue
            message.kept.append(tensor.contiguous())
            operations.append((dist.isend, message.kept[-1], peer))
        works: list[tuple[dist.Work | None, int]] = []
        if self._gloo:
            works = [(operation(tensor, peer), peer) for operation, tensor, peer in operations]
        elif operations:
            together = [dist.P2POp(*operation) for operation in operations]
            works = [(work, -1) for work in dist.batch_isend_irecv(together)]
        message.works += [(work, peer) for work, peer in works if work is not None]

    def share(
        self, key: MessageKey, rank: int, workers: Sequence[int], size: int, dtype: torch.dtype
    ) -> Tensor | None:
        """Return memory of `size` elements that all of `workers` share; None if they cannot."""
        return self._shared.common(key, rank, workers, size, dtype)

    def announce(self, key: MessageKey, peers: Sequence[int], shard: Tensor) -> Message:
        """Announce to neighbours a new shard of common memory, and expect their shards."""
        self._clock.started(key)
        self.bytes_sent += shard.nbytes * len(peers)
        message = Message(key, peers)
        message.signals = [self._shared.signal(key, peer) for peer in peers]
        self._announce(message, shard)
        return message

    def _announce(self, message: Message, shard: Tensor) -> None:
        for signal in message.signals:
            signal.send()

    def _keep_few(self, message: Message) -> None:
        """Keep the buffers of at most `SENT_AHEAD` send-only messages of an exchange.

        gloo does not report whether a send is complete, so this waits for the oldest. That cannot
        deadlock: its receiver starts to receive it at its place in the global order of steps, which
        precedes this step.
        """
        exchange, *_, way = message.key
        sent = self._only_sent[exchange, way]
        sent.append(message)
        if len(sent) > SENT_AHEAD:
            oldest = sent.popleft()
            with self._clock.waiting(oldest.key, ()):
                self._wait(oldest)

    def wait(self, message: Message) -> list[Tensor]:
        """Block until the tensors have arrived and return them; they may be read until `release`.

        Tensors that were sent may then be overwritten.
        """
        with self._clock.waiting(message.key, message.sources):
            return self._wait(message)

    def _wait(self, message: Message) -> list[Tensor]:
        for work, peer in message.works:
            self._wait_for(work, message.key, peer)
        for signal in message.signals:
            signal.wait()
        arrived = []
        for receive, mapped in message.expected:
            content = mapped.content(receive.shape, receive.dtype)
            if receive.into is None:
                message.borrowed.append(mapped)
            else:
                content = receive.into.copy_(content)
                mapped.release()
            arrived.append(content)
        message.works, message.kept, message.expected, message.signals = [], [], [], []
        left = iter(arrived)
        return [next(left) if tensor is None else tensor for tensor in message.received]

    def release(self, message: Message) -> None:
        """Give the memory of received tensors back to their senders."""
        for mapped in message.borrowed:
            mapped.release()
        message.borrowed = []

    def close(self) -> None:
        """Release shared memory. All neighbours call it, with no message in transit."""
        for sent in self._only_sent.values():
            for message in sent:
                self._wait(message)
        self._only_sent.clear()
        self._shared.close()

    def _wait_for(self, work: dist.Work, key: MessageKey, peer: int) -> None:
        """Block until one send or receive is done. Raises `WorkerLost`."""
        self._watch.waits(key, peer)
        try:
            if self._gloo:
                work.wait(UNLIMITED)
            else:
                work.wait()  # NCCL's would block this thread, not only the stream, if it had a timeout
        except RuntimeError as error:
            raise self._watch.lost(error) from error
        self._watch.goes_on()
