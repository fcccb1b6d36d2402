"""Messages between workers: point to point, without a copy where a tensor's part is contiguous.

Every exchange and gradient sync is a set of sends and receives that is started together. On gloo this moves large
buffers 1.4 to 4 times faster than its collectives (`docs/performance.md`), and needs no group for every subset of
workers; NCCL runs the set as one grouped call, as its own all-to-all does.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from parallel.runtime.clock import Clock, Key
from parallel.runtime.world import World

SENT_AHEAD = 2
"""Messages of one exchange that may be on their way to a worker that is behind: it then is what all wait for."""


class Message:
    """Sends and receives under way."""

    def __init__(self, key: Key, works: Sequence[tuple[dist.Work, int]], kept: object, sources: Sequence[int]) -> None:
        self.key = key
        self.sources = sources
        self.works = works
        """Each with the worker at its other end; −1 where one work is for all of them."""
        self._kept = kept  # buffers must outlive the transfer

    def done(self) -> None:
        """Forget what has been waited for."""
        self.works, self._kept = (), None


class Transport:
    """Starts messages and counts the bytes that leave this worker."""

    def __init__(self, world: World, clock: Clock) -> None:
        self._clock = clock
        self._watch = world.watch
        self._gloo = world.backend == "gloo"
        self._only_sent: defaultdict[Key, deque[Message]] = defaultdict(deque)
        """Messages of which nothing is received, by what their keys have in common."""
        self.bytes_sent = 0

    def start(self, key: Key, sends: Sequence[tuple[int, Tensor]], receives: Sequence[tuple[int, Tensor]]) -> Message:
        """Begin to send tensors to workers and to receive from others; all tensors contiguous in memory.

        Each pair of workers must start its messages in the same order. `key` names the exchange on every worker.
        """
        self._clock.started(key)
        self.bytes_sent += sum(tensor.nbytes for _, tensor in sends)
        try:
            works = self._start(sends, receives)
        except RuntimeError as error:  # gloo's, on a connection that is broken already
            raise self._watch.lost(error) from error
        message = Message(key, works, (sends, receives), [peer for peer, _ in receives])
        if self._gloo and sends and not receives:
            self._keep_few(message)
        return message

    def _start(self, sends: Sequence[tuple[int, Tensor]], receives: Sequence[tuple[int, Tensor]]
               ) -> list[tuple[dist.Work, int]]:
        works: list[tuple[dist.Work | None, int]] = []
        if self._gloo:
            works += [(dist.irecv(tensor, peer), peer) for peer, tensor in receives]
            works += [(dist.isend(tensor, peer), peer) for peer, tensor in sends]
        elif sends or receives:
            works += [(work, -1) for work in dist.batch_isend_irecv(
                [dist.P2POp(dist.irecv, tensor, peer) for peer, tensor in receives]
                + [dist.P2POp(dist.isend, tensor, peer) for peer, tensor in sends]
            )]
        return [(work, peer) for work, peer in works if work is not None]

    def _keep_few(self, message: Message) -> None:
        """Hold the buffers of no more than `SENT_AHEAD` messages that an exchange only sends, whatever the number of
        micro-batches.

        gloo does not tell whether a send is complete, so the oldest is waited for. That cannot deadlock: its receiver
        begins to receive it where it stands in the order of all steps, which is before this one.
        """
        exchange, *_, way = message.key
        sent = self._only_sent[exchange, way]
        sent.append(message)
        if len(sent) > SENT_AHEAD:
            oldest = sent.popleft()
            with self._clock.waiting(oldest.key, ()):
                self._wait(oldest)

    def wait(self, message: Message) -> None:
        """Block until the message's tensors are received and its sent ones may be overwritten."""
        with self._clock.waiting(message.key, message.sources):
            self._wait(message)

    def _wait(self, message: Message) -> None:
        try:
            for work, peer in message.works:
                self._watch.waits(message.key, peer)
                if self._gloo and self._watch.timeout is not None:
                    work.wait(self._watch.timeout)
                else:
                    work.wait()  # NCCL's: with a timeout it would block this thread and not only the stream
        except RuntimeError as error:
            raise self._watch.lost(error) from error
        message.done()
        self._watch.goes_on()
