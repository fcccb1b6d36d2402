"""Measure the bandwidth between hosts when a run starts.

The first worker of every host sends to that of the next host, all at once, so that the time does
not grow with the number of hosts. A first message estimates the bandwidth, and some longer ones measure it.
"""

from __future__ import annotations

import dataclasses
import time
from statistics import median

import torch

from parallel.results.hosts import Host
from parallel.runtime.communication.transport import Receive, Transport
from parallel.runtime.communication.world import World
from parallel.runtime.instrumentation.clock import Clock

FIRST_BYTES, LEAST_BYTES, MOST_BYTES = 256_000, 256_000, 32_000_000
MESSAGES = 3
MESSAGE_S = 0.1
"""Aimed time of a message: far longer than latencies, and all together below a second."""


def measured(world: World) -> World:
    """Return the world with the bandwidth of each host to the next; every worker calls it."""
    if len(world.hosts) < 2:
        return world
    world, whole = world.on_host, world
    transport = Transport(world, Clock(world.device))
    ring = Ring(world, transport)
    ring.bytes_per_s(FIRST_BYTES)  # opens the connections
    estimate = min(ring.bytes_per_s(FIRST_BYTES))
    nbytes = round(min(max(MESSAGE_S * estimate, LEAST_BYTES), MOST_BYTES))
    rounds = [ring.bytes_per_s(nbytes) for _ in range(MESSAGES)]
    transport.close()
    hosts: list[Host] = []
    for host, speeds in zip(world.hosts, zip(*rounds, strict=True), strict=True):
        hosts.append(dataclasses.replace(host, bandwidth=median(speeds)))
    return dataclasses.replace(whole, hosts=tuple(hosts))


class Ring:
    """The first workers of all hosts, each sending to the next."""

    def __init__(self, world: World, transport: Transport) -> None:
        self._world, self._transport = world, transport
        self._first = [host.workers[0] for host in world.hosts]

    def bytes_per_s(self, nbytes: int) -> list[float]:
        """Return the bytes per second from each host to the next, as the receivers see it."""
        world, hosts = self._world, len(self._first)
        content = torch.zeros(nbytes, dtype=torch.uint8, device=world.device)
        world.barrier()
        begin = time.perf_counter()
        if world.rank in self._first:
            place = self._first.index(world.rank)
            after, before = self._first[(place + 1) % hosts], self._first[place - 1]
            message = self._transport.start(
                ("bandwidth",), [(after, content)], [Receive(before, (nbytes,), torch.uint8)]
            )
            self._transport.wait(message)
            self._transport.release(message)
            if world.device.type == "cuda":
                torch.cuda.synchronize(world.device)
        seconds = world.gather(time.perf_counter() - begin)
        return [nbytes / seconds[self._first[(place + 1) % hosts]] for place in range(hosts)]
