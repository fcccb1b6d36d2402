"""The number of buffers that send-only messages keep."""

from __future__ import annotations

from dataclasses import replace

import torch

from parallel.config import ClusterConfig
from parallel.runtime.communication.transport import SENT_AHEAD, Receive, Transport
from parallel.runtime.communication.world import open_world
from parallel.runtime.instrumentation.clock import Clock
from tests.support.workers import Workers

BATCHES = 6


def send_ahead() -> list[int]:
    """Send all messages from worker 0 before worker 1 receives them.

    Returns the buffers held after each start on worker 0, and the received values on worker 1.
    """
    with open_world(ClusterConfig(device="cpu")) as world:
        transport = Transport(replace(world, tokens=None), Clock(world.device))
        messages, held = [], []
        for m in range(BATCHES):
            if world.rank == 0:
                messages.append(transport.start((3, m, ">"), [(1, torch.full((1000,), float(m)))], []))
                held.append(sum(bool(message.kept) for message in messages))
            else:
                messages.append(transport.start((3, m, ">"), [], [Receive(0, (1000,), torch.float32)]))
        received = [transport.wait(message) for message in messages]
        assert not any(message.kept for message in messages)
        return held if world.rank == 0 else [int(tensors[0][-1]) for tensors in received]


def test_what_is_only_sent_is_not_kept_for_all_micro_batches(workers: Workers) -> None:
    held, received = workers.run(2, send_ahead)
    assert held == [min(m + 1, SENT_AHEAD) for m in range(BATCHES)]
    assert received == list(range(BATCHES))
