"""Copies of batches to the device: started by the thread that prefetches, on a stream of their own.

    thread              upload(array) …  then  mark()
    loop of training    wait(mark)       then  keep(tensor) …

A copy from pinned memory runs while the device computes. `wait` lets the stream that computes wait for
the copies, not the host. A tensor's memory belongs to the stream of the copies, which may get it back as
soon as the host drops the tensor: `keep` makes it wait until the stream that computes has read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Arriving:
    """Tensors whose copies have started."""

    tensors: tuple[Tensor, ...]
    mark: Any
    """Passed when all have arrived."""


class Uploads(Protocol):
    """What a device offers for copies."""

    def enter_thread(self) -> None:
        """Prepare the thread that calls `upload` and `mark`."""

    def upload(self, array: np.ndarray) -> Tensor:
        """Start to copy an array to the device."""

    def mark(self) -> Any:
        """Return a mark behind all copies so far."""

    def wait(self, mark: Any) -> None:
        """Let the current stream of the caller wait for a mark."""

    def keep(self, tensor: Tensor) -> None:
        """Keep the memory of a tensor until the current stream has done what the caller launches."""


class HostUploads:
    """Copies to the host itself: none."""

    def enter_thread(self) -> None:
        pass

    def upload(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array)

    def mark(self) -> None:
        return None

    def wait(self, mark: None) -> None:
        pass

    def keep(self, tensor: Tensor) -> None:
        pass


class GpuUploads:
    """Copies to a GPU, from pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def enter_thread(self) -> None:
        # The device is set per thread: pinning would otherwise start a context on GPU 0.
        torch.cuda.set_device(self._device)

    def upload(self, array: np.ndarray) -> Tensor:
        # The allocator of pinned memory waits for the copy before it gives the memory to others.
        pinned = torch.from_numpy(array).pin_memory()
        with torch.cuda.stream(self._stream):
            return pinned.to(self._device, non_blocking=True)

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event()
        event.record(self._stream)
        return event

    def wait(self, mark: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self._device).wait_event(mark)

    def keep(self, tensor: Tensor) -> None:
        tensor.record_stream(torch.cuda.current_stream(self._device))


def open_uploads(device: torch.device) -> Uploads:
    """Return the copies to a device."""
    return GpuUploads(device) if device.type == "cuda" else HostUploads()


def start(uploads: Uploads, arrays: tuple[np.ndarray, ...]) -> Arriving:
    """Start to copy arrays; called by the thread."""
    return Arriving(tuple(uploads.upload(array) for array in arrays), uploads.mark())


def take(uploads: Uploads, arriving: Arriving) -> tuple[Tensor, ...]:
    """Return tensors that what the caller launches next may read."""
    uploads.wait(arriving.mark)
    for tensor in arriving.tensors:
        uploads.keep(tensor)
    return arriving.tensors
