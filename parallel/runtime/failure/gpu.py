"""What the watch needs of a GPU: events that it can ask, and an end to communicators.

torch's `Event.query` keeps the interpreter's lock. While the device accepts no more work, or a driver call
of another thread hangs, the driver may block the query, and with it every thread of Python: this worker
would seem dead. So the driver is asked through ctypes, which releases the lock.
"""

from __future__ import annotations

import ctypes
from typing import Protocol

import torch

from parallel.runtime.failure.stream_marks import Events
from parallel.runtime.torch_private import abort_process_groups, communicator_error

DRIVER = "libcuda.so.1"
SUCCESS, NOT_READY = 0, 600
"""CUDA_SUCCESS and CUDA_ERROR_NOT_READY, from cuda.h."""
THREAD_LOCAL = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, from cuda.h: this thread's queries do not disturb a capture of
another thread, which otherwise forbids them. torch's own watchdog does the same."""


class Device(Events[torch.cuda.Stream, torch.cuda.Event], Protocol):
    """A device and its communicators."""

    def enter_thread(self) -> None:
        """Prepare the calling thread for `reached`."""

    def communicator_error(self) -> str:
        """Return what a communicator has noticed, such as a timeout; "" for nothing."""

    def abort(self) -> None:
        """End what the communicators do, on this worker alone, so that no stream waits for them.

        May block.
        """


class Gpu:
    """One GPU."""

    def __init__(self, device: torch.device, backend: str, driver: ctypes.CDLL | None = None) -> None:
        """`backend`: that of the process group. `driver`: the library to ask; None: CUDA's, or torch where there
        is none, as on ROCm."""
        self._device, self._nccl = device, backend == "nccl"
        self._driver = driver or _load(DRIVER)

    def enter_thread(self) -> None:
        torch.cuda.set_device(self._device)
        torch.cuda.Event().record()  # makes the context current, which setting the first device does not
        if self._driver is not None:
            mode = ctypes.c_int(THREAD_LOCAL)
            self._driver.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))

    def current(self) -> torch.cuda.Stream | None:
        if torch.cuda.is_current_stream_capturing():  # the event would become part of the graph
            return None
        return torch.cuda.current_stream(self._device)

    def record(self, stream: torch.cuda.Stream, event: torch.cuda.Event | None) -> torch.cuda.Event:
        if event is None:
            event = torch.cuda.Event()
        event.record(stream)
        return event

    def reached(self, event: torch.cuda.Event) -> bool:
        """Return whether the event has completed. Raises torch's error if the device has failed."""
        if self._driver is not None:
            result = self._driver.cuEventQuery(ctypes.c_void_p(event.cuda_event))
            if result in (SUCCESS, NOT_READY):
                return bool(result == SUCCESS)
        return event.query()  # raises with torch's words

    def communicator_error(self) -> str:
        return communicator_error(self._device) if self._nccl else ""

    def abort(self) -> None:
        if self._nccl:
            torch.cuda.set_device(self._device)
            abort_process_groups()


def _load(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None
