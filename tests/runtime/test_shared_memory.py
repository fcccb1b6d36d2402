"""Memory that the workers of one host share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from parallel.config import ClusterConfig
from parallel.runtime.communication.opening import open_world
from parallel.runtime.communication.shared_memory import _create
from parallel.runtime.communication.transport import Receive, Transport
from parallel.runtime.instrumentation.clock import Clock
from tests.support.workers import Workers

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def mapped() -> int:
    """Return the number of files in memory that this process maps."""
    return Path("/proc/self/maps").read_text().count("memfd:parallel")


def use_many_slots() -> list[int]:
    """Return the open descriptors before any message, after a few, and after many more; and the files
    mapped in the end and after the transport was closed."""
    with open_world(ClusterConfig(device="cpu")) as world:
        transport, peer = Transport(world, Clock(world.device)), 1 - world.rank
        counts = [descriptors()]
        for first, last in ((0, 3), (3, 60)):
            for exchange in range(first, last):
                content = torch.full((100,), float(exchange))
                message = transport.start(
                    (exchange, 0, ">"), [(peer, content)], [Receive(peer, (100,), torch.float32)]
                )
                (received,) = transport.wait(message)
                assert received[-1] == exchange
                del received
                transport.release(message)
                shared = transport.share((exchange, "weights"), world.rank, (0, 1), 100, torch.float32)
                assert shared is not None
                shared[world.rank] = 1.0
                del shared
            world.barrier()
            counts.append(descriptors())
        counts.append(mapped())
        transport.close()
        return [*counts, mapped()]


def test_descriptors_do_not_grow_with_the_ops_of_a_network(workers: Workers) -> None:
    for before, few, many, used, closed in workers.run(2, use_many_slots):
        assert before == few == many
        assert (used, closed) == (120, 0), "a slot in each direction; common memory only while it is used"


def test_memory_lives_as_long_as_a_tensor_in_it() -> None:
    before = mapped()
    file, memory = _create(4096)
    os.close(file)
    tensor = torch.frombuffer(memory, dtype=torch.float32)
    del memory
    tensor.fill_(1.5)
    assert mapped() == before + 1 and tensor.sum() == 1.5 * 1024
    del tensor
    assert mapped() == before


def test_memory_that_cannot_be_had_is_an_error() -> None:
    with pytest.raises(OSError, match="bytes of shared memory"):
        _create(1 << 60)
