"""Choosing the transport of a worker."""

from __future__ import annotations

from parallel.runtime.communication.chaos_transport import ChaosTransport
from parallel.runtime.communication.staged_transport import StagedChaosTransport, StagedTransport
from parallel.runtime.communication.strict_transport import StrictTransport
from parallel.runtime.communication.transport import Transport
from parallel.runtime.communication.world import World
from parallel.runtime.instrumentation.clock import Clock


def open_transport(world: World, clock: Clock) -> Transport:
    """Return a transport for this worker: staged where workers share a GPU, in chaos mode one that delivers
    late, in strict mode one with NCCL's rules."""
    if world.stream is not None:
        return StrictTransport(world, clock, world.stream)
    if world.staging is not None:
        if world.chaos is not None:
            return StagedChaosTransport(world, clock, world.staging, world.chaos)
        return StagedTransport(world, clock, world.staging)
    return Transport(world, clock) if world.chaos is None else ChaosTransport(world, clock, world.chaos)
