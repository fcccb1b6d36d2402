"""Staging without a GPU: tensors of the CPU in place of the device's, and a stream whose copies are late.

    to the host     writes the content that the tensor has now, but only in `finish`; until then NaN
    to the device   writes at once, since later kernels of the stream would see it; `finish` checks that the
                    host memory still holds what was read

Patched into a worker's process, every message and sum that takes memory which is not the host's raises.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.runtime.communication.shared_memory import Slot
from parallel.runtime.communication.staging import Staging
from parallel.runtime.communication.transport import Message, Receive, Transport


class ImitatedStaging(Staging):
    """Late copies between memory that counts as the device's and memory that counts as the host's."""

    def __init__(self) -> None:
        self._hosts: dict[int, weakref.ref[Tensor]] = {}
        self._writes: list[tuple[Tensor, Tensor]] = []
        self._reads: list[tuple[Tensor, Tensor]] = []
        self.bytes_to_host = 0

    def host_memory(self, tensor: Tensor) -> Tensor:
        memory = torch.empty(tensor.shape, dtype=tensor.dtype)
        _spoil(memory)
        self._hosts[memory.untyped_storage().data_ptr()] = weakref.ref(memory)
        return memory

    def copy(self, target: Tensor, source: Tensor) -> None:
        if self.is_host(target):
            assert not self.is_host(source), "a copy from host to host"
            self.bytes_to_host += source.nbytes
            self._writes.append((target, source.clone()))
        else:
            target.copy_(source)
            self._reads.append((source, source.clone()))

    def finish(self) -> None:
        for target, content in self._writes:
            target.copy_(content)
        for source, content in self._reads:
            assert torch.equal(source, content), "host memory was overwritten while the device read it"
        self._writes, self._reads = [], []

    def is_host(self, tensor: Tensor) -> bool:
        """Return whether a tensor lies in memory of `host_memory`."""
        pointer = tensor.untyped_storage().data_ptr()
        found = self._hosts.get(pointer)
        memory = None if found is None else found()
        return memory is not None and memory.untyped_storage().data_ptr() == pointer


def _spoil(memory: Tensor) -> None:
    memory.fill_(float("nan") if memory.is_floating_point() else 99)


@contextlib.contextmanager
def imitated_staging() -> Iterator[ImitatedStaging]:
    """Make worlds stage all tensors, and refuse those that reach gloo or shared memory by another way."""
    staging = ImitatedStaging()
    isend, all_reduce, send, start = dist.isend, dist.all_reduce, Slot.send, Transport._start

    def checked_isend(tensor: Tensor, *args: Any, **options: Any) -> Any:
        assert staging.is_host(tensor), "a tensor of the device reaches gloo"
        return isend(tensor, *args, **options)

    def checked_all_reduce(tensor: Tensor, *args: Any, **options: Any) -> Any:
        assert staging.is_host(tensor), "a tensor of the device reaches gloo's sum"
        return all_reduce(tensor, *args, **options)

    def checked_send(slot: Slot, tensor: Tensor) -> None:
        assert staging.is_host(tensor), "a tensor of the device reaches shared memory"
        send(slot, tensor)

    def checked_start(
        transport: Transport,
        message: Message,
        sends: Sequence[tuple[int, Tensor]],
        receives: Sequence[Receive],
    ) -> None:
        assert all(receive.into is None for receive in receives), "a message arrives in the device's memory"
        start(transport, message, sends, receives)

    with (
        patch("parallel.runtime.communication.opening.open_staging", lambda *_: staging),
        patch.object(dist, "isend", checked_isend),
        patch.object(dist, "all_reduce", checked_all_reduce),
        patch.object(Slot, "send", checked_send),
        patch.object(Transport, "_start", checked_start),
    ):
        yield staging
        assert not staging._writes and not staging._reads, "copies that nobody waited for"
