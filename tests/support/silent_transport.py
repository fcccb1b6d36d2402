"""A transport whose messages bring zeros at once: one worker of a plan runs alone, as over NCCL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

from parallel.runtime.communication.transport import Message, Receive, Transport
from parallel.runtime.communication.world import World
from parallel.runtime.instrumentation.clock import MessageKey


class SilentTransport(Transport):
    """Receives zeros into new memory, as NCCL's transport receives into memory of the device."""

    def start(
        self, key: MessageKey, sends: Sequence[tuple[int, Tensor]], receives: Sequence[Receive]
    ) -> Message:
        self._clock.started(key)
        message = Message(key, [receive.peer for receive in receives])
        message.kept = [tensor.contiguous() for _, tensor in sends]
        for receive in receives:
            into = receive.into
            if into is None:
                into = torch.empty(receive.shape, dtype=receive.dtype, device=self._device)
            message.received.append(into.detach().zero_())
        return message

    def wait(self, message: Message) -> list[Tensor]:
        return [tensor for tensor in message.received if tensor is not None]


@contextmanager
def silent_transports() -> Iterator[None]:
    """Let runtimes use `SilentTransport`."""
    with patch("parallel.runtime.execution.runtime.open_transport", SilentTransport):
        yield


def silent_world(rank: int, size: int) -> World:
    """Return the world of one worker that runs alone."""
    return World(rank, size, torch.device("cpu"), "none")
