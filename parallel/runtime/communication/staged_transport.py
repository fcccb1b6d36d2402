"""The transport of workers that share a GPU: the CPU's, with copies between device and host around it.

Every message is one of the CPU transport between two pieces of host memory: shared memory within a
host, gloo between hosts, late ones in chaos mode. Weights lie on the device, so none are common memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from parallel.runtime.communication.chaos_transport import ChaosTransport
from parallel.runtime.communication.staging import Staging
from parallel.runtime.communication.transport import Message, Receive, Transport
from parallel.runtime.communication.world import World
from parallel.runtime.instrumentation.clock import Clock, MessageKey


class StagedTransport(Transport):
    """A transport of device tensors over host memory."""

    def __init__(self, world: World, clock: Clock, staging: Staging, *options: Any) -> None:
        """`options` are those of the transport of host tensors."""
        super().__init__(world.on_host, clock, *options)
        self._staging, self._target = staging, world.device
        self._to_receive: dict[Message, Sequence[Receive]] = {}

    def start(
        self, key: MessageKey, sends: Sequence[tuple[int, Tensor]], receives: Sequence[Receive]
    ) -> Message:
        copies = self._staging.to_host(tensor for _, tensor in sends)
        peers = [peer for peer, _ in sends]
        message = super().start(
            key, list(zip(peers, copies, strict=True)), [replace(receive, into=None) for receive in receives]
        )
        if receives:
            self._to_receive[message] = receives
        return message

    def wait(self, message: Message) -> list[Tensor]:
        arrived = super().wait(message)
        tensors = [
            torch.empty(receive.shape, dtype=receive.dtype, device=self._target)
            if receive.into is None
            else receive.into
            for receive in self._to_receive.pop(message, ())
        ]
        self._staging.to_device(zip(tensors, arrived, strict=True))
        super().release(message)
        return tensors

    def release(self, message: Message) -> None:
        """Do nothing: received tensors are copies, whose host memory `wait` has released."""

    def share(
        self, key: MessageKey, rank: int, workers: Sequence[int], size: int, dtype: torch.dtype
    ) -> Tensor | None:
        return None

    def announce(self, key: MessageKey, peers: Sequence[int], shard: Tensor) -> Message:
        raise RuntimeError("weights on a device are no common memory, so none can be announced")


class StagedChaosTransport(StagedTransport, ChaosTransport):
    """Staged messages that arrive late: chaos among the host's memory."""
