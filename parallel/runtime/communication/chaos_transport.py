"""The transport of chaos mode: delivers late, and exposes reads before `wait` or after `release`.

    sent tensor       read from the sender's memory after a random delay
    received tensor   NaN at its destination until `wait` returns, and NaN again after `release`
    shared shard      NaN for every worker until it is announced, after a random delay
    collective        NaN in the whole tensor until `wait` returns, and in a sum's other shards from then on

Starting a message again, or closing the transport, without waiting for the message raises
`RuntimeError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from parallel.runtime.communication.chaos import Chaos, Postponed, poison
from parallel.runtime.communication.groups import WorkerSet
from parallel.runtime.communication.transport import Collective, Message, Receive, Transport, sums
from parallel.runtime.communication.world import World
from parallel.runtime.failure.wording import describe_message
from parallel.runtime.instrumentation.clock import Clock, MessageKey


class ChaosTransport(Transport):
    """A transport whose messages arrive late. For CPU workers."""

    def __init__(self, world: World, clock: Clock, chaos: Chaos) -> None:
        super().__init__(world, clock)
        self._postponed = Postponed(chaos, world.rank, self._number)
        self._under_way: dict[MessageKey, tuple[Message, Sequence[Receive]]] = {}
        """Messages that have not been waited for, by key, and their receives."""
        self._readable: dict[Message, list[Tensor]] = {}
        """Received tensors that have not been released."""
        self._collected: dict[Message, tuple[Tensor, Tensor]] = {}
        """Destination and hidden result of collectives under way."""

    def _start(
        self, message: Message, sends: Sequence[tuple[int, Tensor]], receives: Sequence[Receive]
    ) -> None:
        self._begin(message, receives)
        for receive in receives:
            if receive.into is not None:
                poison(receive.into)
        super()._start(message, (), [replace(receive, into=None) for receive in receives])
        if sends:
            self._postponed.add(lambda: super(ChaosTransport, self)._start(message, sends, ()))

    def _announce(self, message: Message, shard: Tensor) -> None:
        self._begin(message, ())
        new = shard.detach().clone()
        poison(shard)

        def deliver() -> None:
            shard.detach().copy_(new)
            super(ChaosTransport, self)._announce(message, shard)

        self._postponed.add(deliver)

    def _start_collective(
        self, message: Message, collective: Collective, workers: WorkerSet, whole: Tensor, shard: Tensor
    ) -> None:
        self._begin(message, ())
        hidden = whole.detach().clone()
        part = hidden.view(len(workers), -1)[workers.index(self._rank)]
        poison(whole)
        arrived = (shard, part) if sums(collective) else (whole, hidden)
        self._collected[message] = arrived
        start = partial(super()._start_collective, message, collective, workers, hidden, part)
        self._postponed.add(start)

    def wait_on_stream(self, message: Message) -> None:
        self.wait(message)

    def _begin(self, message: Message, receives: Sequence[Receive]) -> None:
        self._postponed.run_due()
        if message.key in self._under_way:
            raise RuntimeError(f"{describe_message(message.key)} starts again and was never waited for")
        self._under_way[message.key] = message, receives

    def wait(self, message: Message) -> list[Tensor]:
        self._postponed.run_all()  # before this worker blocks: others may wait for it
        _, receives = self._under_way.pop(message.key)
        tensors = super().wait(message)
        if message in self._collected:
            place, arrived = self._collected.pop(message)
            place.detach().copy_(arrived)
        for i, receive in enumerate(receives):
            if receive.into is not None:
                with torch.no_grad():
                    tensors[i] = receive.into.copy_(tensors[i])
        self._readable[message] = [
            tensor for tensor, receive in zip(tensors, receives, strict=True) if receive.into is None
        ]
        return tensors

    def release(self, message: Message) -> None:
        for tensor in self._readable.pop(message):
            poison(tensor)
        super().release(message)

    def close(self) -> None:
        self._postponed.run_all()
        if self._under_way:
            raise RuntimeError(f"never waited for: {'; '.join(map(describe_message, self._under_way))}")
        super().close()
