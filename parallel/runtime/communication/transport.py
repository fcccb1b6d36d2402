"""Point-to-point messages between workers, without a copy where the part of a tensor is contiguous.

Every exchange and gradient sync is a set of sends and receives that start together. With gloo this
moves large buffers 1.4 to 4 times faster than its collectives (`docs/performance.md`) and needs no
group for every subset of workers. NCCL runs the set as one grouped call, like its own all-to-all.
CPU workers of one host exchange tensors through shared memory (`shared_memory`).

With gloo, the messages of a process group to one worker share a TCP connection and arrive in the
order in which they start. The sum of a fully connected layer takes a second on a 1 Gbit link, and what
the next forward pass needs first would wait for it. So large messages have connections of their own
(`World.flows`), over which each is cut into equal pieces; the kernel divides the link among the
connections. NCCL opens several sockets by itself (NCCL_NSOCKS_PERTHREAD, NCCL_SOCKET_NTHREADS).

Gradient sums and gathers over NCCL are collectives on groups of their own (`groups`): a reduce-scatter or
an all-gather, in place, is one operation in place of 2 (K − 1) messages, and NCCL chooses rings for it that
use all links. Every backend has them, which is how they are tested without GPUs.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.runtime.communication.groups import WorkerSet
from parallel.runtime.communication.shared_memory import PeerSlot, SharedMemory, Signal
from parallel.runtime.communication.world import World
from parallel.runtime.instrumentation.clock import Clock, MessageKey

# Renamed in torch 2.13, which warns of the old names; torch 2.11 and 2.12 have only those.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

UNLIMITED = timedelta(days=365)
"""gloo counts the time for which the whole job is stopped, and its connections do not outlive a
timeout. So the watch limits waits."""
LARGE = 4 << 20
"""Bytes from which a message between hosts goes over the connections for large ones."""
SENT_AHEAD = 2
"""Messages of one exchange that may be in transit to a worker that lags behind."""

Collective = Callable[..., "dist.Work | None"]
"""A collective of torch that divides a tensor into equal shards."""


def sums(collective: Collective) -> bool:
    """Return whether it is the reduce-scatter, not the all-gather."""
    return collective is _reduce_scatter


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
        self.works: list[tuple[Any, int, bool]] = []
        """Works of torch, or what is waited for like them; the worker at the other end (−1: one work is for
        all of them); and whether they receive."""
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
        self._groups = world.groups
        self._device = world.device
        self._rank, self._size = world.rank, world.size
        self._flows = world.flows
        self._number = next(world.transports)
        self._connected: set[int | WorkerSet] = set()
        """Workers to which NCCL has a connection, and sets of workers with a group that has collected."""
        self._shared = SharedMemory(world.tokens, self._number, clock)
        self._only_sent: defaultdict[MessageKey, deque[Message]] = defaultdict(deque)
        """Messages without receives, by the part of the key that micro-batches share."""
        self.bytes_sent = 0

    def messaging(self) -> AbstractContextManager[None]:
        """Count the time of the block, but for waits, as this worker's own work on messages."""
        return self._clock.messaging()

    def start(
        self, key: MessageKey, sends: Sequence[tuple[int, Tensor]], receives: Sequence[Receive]
    ) -> Message:
        """Start sending tensors to workers and receiving from others.

        Each pair of workers must start its messages in the same order. `key` names the message on
        every worker. Nothing is sent for a tensor without elements, such as the shard of a bucket with
        fewer elements than workers.
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
            if 0 in receive.shape:
                message.received.append(self._place(receive))
                continue
            if receive.peer in self._shared.peers:
                message.expected.append((receive, self._shared.peer_slot(message.key, receive.peer)))
                message.received.append(None)
                continue
            buffer = self._place(receive)
            message.received.append(buffer)
            operations.append((dist.irecv, buffer, receive.peer))
        for peer, tensor in sends:
            if tensor.numel() == 0:
                continue
            if peer in self._shared.peers:
                self._shared.send(message.key, peer, tensor)
                continue
            message.kept.append(tensor.contiguous())
            operations.append((dist.isend, message.kept[-1], peer))
        works: list[tuple[Any, int, bool]] = []
        if self._gloo:
            works = [
                (operation(piece, peer, group=group), peer, operation is dist.irecv)
                for operation, tensor, peer in operations
                for piece, group in self._pieces(tensor)
            ]
        elif operations:
            receiving = any(operation is dist.irecv for operation, *_ in operations)
            peers: set[int | WorkerSet] = {peer for _, _, peer in operations}
            only = operations[0][-1] if len(peers) == 1 else -1
            with self._connecting(peers, only):
                works = [(work, only, receiving) for work in self._group(message.key, operations)]
        message.works += [(work, peer, receiving) for work, peer, receiving in works if work is not None]

    def _group(self, key: MessageKey, operations: Sequence[tuple[Any, Tensor, int]]) -> Sequence[Any]:
        """Start sends and receives as one group; return the works that are done with it: torch's, or what
        is waited for like them."""
        return dist.batch_isend_irecv([dist.P2POp(*operation) for operation in operations])

    @contextmanager
    def _connecting(self, peers: Set[int | WorkerSet], only: int) -> Iterator[None]:
        """Tell the watch that NCCL blocks the host at the first message between two workers and at the first
        collective of a group, until all of them have come to it."""
        if self._connected.issuperset(peers):
            yield
            return
        self._watch.waits(("the first message",), only)
        yield
        self._connected |= peers
        self._watch.goes_on()

    def _place(self, receive: Receive) -> Tensor:
        """Return the memory to receive into."""
        if receive.into is not None:
            return receive.into
        return torch.empty(receive.shape, dtype=receive.dtype, device=self._device)

    def _pieces(self, tensor: Tensor) -> list[tuple[Tensor, dist.ProcessGroup | None]]:
        """Return the pieces of a contiguous tensor and their groups, the same at both ends."""
        if not self._flows or tensor.nbytes < LARGE:
            return [(tensor, None)]
        return list(zip(tensor.view(-1).chunk(len(self._flows)), self._flows, strict=False))

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

    def reduce_scatter(self, key: MessageKey, workers: WorkerSet, whole: Tensor) -> Message:
        """Start to sum a tensor over workers; each receives the sum of its shard, in place.

        `whole` is divided into equal shards, in the order of the workers; its other shards are undefined
        from then on. It must not be touched, nor given up, before `wait`.
        """
        return self._collect(_reduce_scatter, key, workers, whole)

    def all_gather(self, key: MessageKey, workers: WorkerSet, whole: Tensor) -> Message:
        """Start to send this worker's shard of a tensor to all workers, and to receive theirs in place."""
        return self._collect(_all_gather, key, workers, whole)

    def _collect(self, collective: Collective, key: MessageKey, workers: WorkerSet, whole: Tensor) -> Message:
        self._clock.started(key)
        message = Message(key, [worker for worker in workers if worker != self._rank])
        shard = whole.view(len(workers), -1)[workers.index(self._rank)]
        self.bytes_sent += whole.nbytes - shard.nbytes
        try:
            with self._connecting({workers}, -1):
                self._start_collective(message, collective, workers, whole, shard)
        except RuntimeError as error:  # from gloo, when the connection is already broken
            raise self._watch.lost(error) from error
        return message

    def _start_collective(
        self, message: Message, collective: Collective, workers: WorkerSet, whole: Tensor, shard: Tensor
    ) -> None:
        into, source = (shard, whole) if sums(collective) else (whole, shard)
        work = collective(into, source, group=self._groups[workers], async_op=True)
        if work is None:
            raise RuntimeError(f"this worker is not in the group of workers {workers}")
        message.works.append((work, -1, True))

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

    def wait_on_stream(self, message: Message) -> None:
        """Make the current stream wait for a collective, and nothing else: this worker goes on. On a CPU it
        blocks. The clock is not told: its marks follow the stream that computes."""
        for work, peer, _ in message.works:
            self._wait_for(work, message.key, peer)
        message.works = []

    def _wait(self, message: Message) -> list[Tensor]:
        only = message.sources[0] if len(message.sources) == 1 else None  # NCCL's work is for all sources
        for work, peer, receiving in sorted(message.works, key=lambda of: (not of[2], self._turn(of[1]))):
            source = peer if self._gloo and peer >= 0 else only
            with self._clock.blocked(source if receiving else None):
                self._wait_for(work, message.key, peer)
        signals = zip(message.sources, message.signals, strict=False)  # none but in `announce`
        for peer, signal in sorted(signals, key=lambda of: self._turn(of[0])):
            with self._clock.blocked(peer):
                signal.wait()
        arrived = dict[int, Tensor]()
        for i in sorted(range(len(message.expected)), key=lambda i: self._turn(message.expected[i][0].peer)):
            receive, mapped = message.expected[i]
            with self._clock.blocked(receive.peer):
                content = mapped.content(receive.shape, receive.dtype)
            if receive.into is None:
                message.borrowed.append(mapped)
            else:
                content = receive.into.copy_(content)
                mapped.release()
            arrived[i] = content
        message.works, message.kept, message.expected, message.signals = [], [], [], []
        left = (arrived[i] for i in range(len(arrived)))
        return [next(left) if tensor is None else tensor for tensor in message.received]

    def _turn(self, peer: int) -> int:
        """Return the place of a peer in the order in which this worker waits for messages.

        The first wait takes the time that all messages need. If every worker waited in the order of
        ranks, worker 0 would always seem the slowest; so each begins with the next worker.
        """
        return (peer - self._rank) % self._size

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

    def _wait_for(self, work: Any, key: MessageKey, peer: int) -> None:
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
