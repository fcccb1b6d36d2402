"""Messages between workers: point to point, without a copy where a tensor's part is contiguous.

Every exchange and gradient sync is a set of sends and receives that is started together. On gloo this moves large
buffers 1.4 to 4 times faster than its collectives (`docs/performance.md`), and needs no group for every subset of
workers; NCCL runs the set as one grouped call, as its own all-to-all does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from parallel.runtime.clock import Clock, Key
from parallel.runtime.world import World


class Message:
    """Sends and receives under way."""

    def __init__(self, key: Key, works: Sequence[dist.Work], kept: object, sources: Sequence[int]) -> None:
        self.key = key
        self.sources = sources
        self._works = works
        self._kept = kept  # buffers must outlive the transfer

    def wait(self) -> None:
        for work in self._works:
            work.wait()
        self._works, self._kept = (), None


class Transport:
    """Starts messages and counts the bytes that leave this worker."""

    def __init__(self, world: World, clock: Clock) -> None:
        self._clock = clock
        self._gloo = world.backend == "gloo"
        self.bytes_sent = 0

    def start(self, key: Key, sends: Sequence[tuple[int, Tensor]], receives: Sequence[tuple[int, Tensor]]) -> Message:
        """Begin to send tensors to workers and to receive from others; all tensors contiguous in memory.

        Each pair of workers must start its messages in the same order. `key` names the exchange on every worker.
        """
        self._clock.started(key)
        self.bytes_sent += sum(tensor.nbytes for _, tensor in sends)
        works: list[dist.Work | None] = []
        if self._gloo:
            works += [dist.irecv(tensor, peer) for peer, tensor in receives]
            works += [dist.isend(tensor, peer) for peer, tensor in sends]
        elif sends or receives:
            works += dist.batch_isend_irecv(
                [dist.P2POp(dist.irecv, tensor, peer) for peer, tensor in receives]
                + [dist.P2POp(dist.isend, tensor, peer) for peer, tensor in sends]
            )
        under_way = [work for work in works if work is not None]
        return Message(key, under_way, (sends, receives), [peer for peer, _ in receives])

    def wait(self, message: Message) -> None:
        """Block until the message's tensors are received and its sent ones may be overwritten."""
        with self._clock.waiting(message.key, message.sources):
            message.wait()
