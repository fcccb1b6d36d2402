"""The number of buffers that send-only messages keep, and the connections that large messages use."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from parallel.config import ClusterConfig
from parallel.runtime.communication.opening import open_world
from parallel.runtime.communication.transport import SENT_AHEAD, Receive, Transport
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


def send_large(flows: int) -> tuple[int, list[list[int]], list[int]]:
    """Exchange a large, a small and again a large message, of sizes that no number of flows divides;
    wait for them in the reverse order. Return the groups for large ones, what arrived, and the groups of a
    large message's pieces and of a small one."""
    cluster = ClusterConfig(device="cpu", shared_memory=False, flows=flows)
    with open_world(cluster) as world, patch("parallel.runtime.communication.transport.LARGE", 100):
        transport, peer = Transport(world, Clock(world.device)), 1 - world.rank
        messages = []
        for number, size in enumerate((101, 7, 1003)):
            sent = torch.arange(size, dtype=torch.int64) + 1000 * world.rank + number
            place = torch.empty(size, dtype=torch.int64)
            receive = Receive(peer, (size,), torch.int64, place if number else None)
            messages.append(transport.start((number, 0, ">"), [(peer, sent)], [receive]))
        arrived = [transport.wait(message)[0].tolist() for message in reversed(messages)]
        used = [len(transport._pieces(torch.empty(size, dtype=torch.int64))) for size in (1003, 7)]
        transport.close()
        return len(world.flows), arrived[::-1], used


@pytest.mark.parametrize("flows", [1, 2, 4])
def test_large_messages_arrive_whole_over_any_number_of_flows(workers: Workers, flows: int) -> None:
    for rank, (groups, arrived, used) in enumerate(workers.run(2, send_large, flows)):
        assert groups == flows - 1 and used == [max(1, flows - 1), 1]
        assert arrived == [
            [i + 1000 * (1 - rank) + number for i in range(size)]
            for number, size in enumerate((101, 7, 1003))
        ]


def groups_with_memory() -> int:
    with open_world(ClusterConfig(device="cpu", flows=4)) as world:
        return len(world.flows)


def test_workers_of_one_host_need_no_flows(workers: Workers) -> None:
    assert workers.run(2, groups_with_memory) == [0, 0]
