"""The transport of strict mode: CPU workers exchange messages under NCCL's rules (`ordered_stream`).

Messages take the way through the transport that they take with NCCL. Destinations hold NaN until `wait`
has returned, so that a read before it shows. A program in a wrong order deadlocks, which the watch
reports, or raises `WrongOrder`: for a message that meets another one, and for a collective whose kind, key,
elements, data type or members are not those of another member.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.runtime.communication.chaos import poison
from parallel.runtime.communication.groups import WorkerSet
from parallel.runtime.communication.ordered_stream import Call, Operation, OrderedStream, StreamWork
from parallel.runtime.communication.transport import Collective, Message, Transport, sums
from parallel.runtime.communication.world import World
from parallel.runtime.instrumentation.clock import Clock, MessageKey


class StrictTransport(Transport):
    """A transport with NCCL's semantics. For CPU workers, without shared memory."""

    def __init__(self, world: World, clock: Clock, stream: OrderedStream) -> None:
        super().__init__(world, clock)
        self._gloo = False
        self._stream = stream

    def _group(self, key: MessageKey, operations: Sequence[tuple[Any, Tensor, int]]) -> Sequence[StreamWork]:
        group: list[Operation] = []
        arriving: list[tuple[Tensor, Tensor]] = []
        for operation, tensor, peer in operations:
            place = tensor
            if operation is dist.irecv:
                place = torch.empty_like(tensor)
                poison(tensor)
                arriving.append((tensor, place))
            group.append(Operation(operation is dist.isend, place, peer))

        def deliver() -> None:
            for destination, arrived in arriving:
                destination.detach().copy_(arrived)

        return [self._stream.enqueue(key, group, deliver)]

    def _start_collective(
        self, message: Message, collective: Collective, workers: WorkerSet, whole: Tensor, shard: Tensor
    ) -> None:
        hidden = whole.detach().clone()
        part = hidden.view(len(workers), -1)[workers.index(self._rank)]
        poison(whole)
        into, source, place, arrived = (
            (part, hidden, shard, part) if sums(collective) else (hidden, part, whole, hidden)
        )
        start = partial(collective, into, source, group=self._groups[workers], async_op=True)

        def deliver() -> None:
            place.detach().copy_(arrived)

        kind = "reduce_scatter" if sums(collective) else "all_gather"
        call = Call(kind, message.key, whole, workers)
        message.works.append((self._stream.enqueue_collective(call, start, deliver), -1, True))
