"""Staging: tensors of a device on their way through host memory.

gloo and memory shared between processes take tensors of the CPU. Where several workers share a GPU,
which NCCL does not connect by default, a tensor is copied to the host before its message starts, and what arrives is
copied to the device. Copies are work on the device's stream:

    to the host     runs after the kernels that compute the tensor; the message starts when the copy is
                    done (`finish`), or it would send what the memory held before
    to the device   runs before the kernels that read the tensor, on the same stream; the host memory
                    goes back to its sender when the copy is done, or the sender might overwrite it

`StagedTransport` has the messages, `World` the few collectives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor


class Staging(ABC):
    """Copies between a device and host memory; the abstract methods are the device's part."""

    @abstractmethod
    def host_memory(self, tensor: Tensor) -> Tensor:
        """Return new contiguous host memory with the shape and type of `tensor`."""

    @abstractmethod
    def copy(self, target: Tensor, source: Tensor) -> None:
        """Start to copy between device and host; one of both is contiguous host memory."""

    @abstractmethod
    def finish(self) -> None:
        """Block this thread until all copies that it started are done."""

    def to_host(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Return copies of the device's tensors in host memory, complete."""
        copies = []
        for tensor in tensors:
            copies.append(self.host_memory(tensor))
            self.copy(copies[-1], tensor.detach())
        if copies:
            self.finish()
        return copies

    def to_device(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Copy to each tensor of the device, the first of a pair, from host memory, the second.

        The host memory may be overwritten afterwards.
        """
        pairs = list(pairs)
        with torch.no_grad():
            for target, source in pairs:
                self.copy(target, source)
        if pairs:
            self.finish()


class CudaStaging(Staging):
    """Copies on the current stream of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def host_memory(self, tensor: Tensor) -> Tensor:
        # Pinned, or the driver would copy through memory of its own.
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def finish(self) -> None:
        # Autograd's threads have a current stream of their own, so it is looked up here.
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self._device))
        done.synchronize()
