"""The transport of chaos mode: delivers late, and exposes reads before `wait` or after `release`.

    sent tensor       read from the sender's memory after a random delay
    received tensor   NaN at its destination until `wait` returns, and NaN again after `release`
    shared shard      NaN for every worker until it is announced, after a random delay

Starting a message again, or closing the transport, without waiting for the message raises
`RuntimeError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from parallel.runtime.communication.chaos import Chaos, Postponed, poison
from parallel.runtime.communication.transport import Message, Receive, Transport
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

    def _begin(self, message: Message, receives: Sequence[Receive]) -> None:
        self._postponed.run_due()
        if message.key in self._under_way:
            raise RuntimeError(f"{describe_message(message.key)} starts again and was never waited for")
        self._under_way[message.key] = message, receives

    def wait(self, message: Message) -> list[Tensor]:
        self._postponed.run_all()  # before this worker blocks: others may wait for it
        _, receives = self._under_way.pop(message.key)
        tensors = super().wait(message)
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


def open_transport(world: World, clock: Clock) -> Transport:
    """Return a transport for this worker, in chaos mode one that delivers late."""
    return Transport(world, clock) if world.chaos is None else ChaosTransport(world, clock, world.chaos)
