"""Time a small message that starts behind a large one, over one or several connections.

    python -m parallel.emulate run --hosts 2 --rate 1gbit -- scripts/bench_flows.py

Two workers on two hosts, here emulated ones, send each other 64 MiB and then 1 MiB. With one flow, the
small message waits for the large one. Numbers of flows take turns; the first round is not counted.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import torch

from parallel.config import ClusterConfig
from parallel.runtime.communication.opening import open_world
from parallel.runtime.communication.transport import Receive, Transport
from parallel.runtime.communication.world import World
from parallel.runtime.instrumentation.clock import Clock

FLOWS, ROUNDS = (1, 2, 3, 5), 5
LARGE, SMALL = 64 << 20, 1 << 20
"""Bytes of the messages."""


def seconds(world: World, flows: int, turn: int) -> tuple[float, float]:
    """Return when the small message and when both have arrived."""
    transport = Transport(replace(world, flows=world.flows[: flows - 1]), Clock(world.device))
    peer, messages = 1 - world.rank, []
    world.barrier()
    begin = time.perf_counter()
    for nbytes in (LARGE, SMALL):
        receive = Receive(peer, (nbytes,), torch.uint8)
        content = torch.ones(nbytes, dtype=torch.uint8)
        messages.append(transport.start((nbytes, turn), [(peer, content)], [receive]))
    transport.wait(messages[1])
    small = time.perf_counter() - begin
    transport.wait(messages[0])
    return small, time.perf_counter() - begin


def main() -> None:
    with open_world(ClusterConfig(device="cpu", shared_memory=False, flows=max(FLOWS))) as world:
        times: dict[int, list[tuple[float, float]]] = {flows: [] for flows in FLOWS}
        for turn in range(ROUNDS + 1):
            for flows in FLOWS:
                times[flows].append(seconds(world, flows, turn))
        for flows in FLOWS if world.rank == 0 else ():
            small, both = (1000 * statistics.median(column) for column in zip(*times[flows][1:], strict=True))
            rate = 8 * (LARGE + SMALL) / both / 1e6
            print(f"{flows} flows: 1 MiB after {small:6.1f} ms, all after {both:6.1f} ms, {rate:.2f} Gbit/s")


if __name__ == "__main__":
    main()
