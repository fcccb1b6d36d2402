"""A device that runs behind the host, imitated: one stream that works in order, and its events.

Host and device share one clock, `now`, which only the host advances. The device works off what the
host has enqueued, in its order, each kernel when the one before has ended and the host has enqueued it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np

QUEUE = 1024
"""Kernels that fit in the queue: then the host waits until the oldest one has ended, as with CUDA."""


class SimulatedDevice:
    """The stream and the host's clock, in seconds."""

    def __init__(self, launch_s: float = 0.0) -> None:
        """`launch_s`: what the host takes to enqueue a kernel."""
        self.now = 0.0
        self.ends = 0.0
        """When the device has done all that is enqueued."""
        self.events = 0
        """Events made so far."""
        self._launch_s = launch_s
        self._queue: deque[float] = deque()

    def host(self, seconds: float) -> None:
        """The host works, or waits for something that is not the device."""
        self.now += seconds

    def kernel(self, seconds: float) -> None:
        """Enqueue a kernel."""
        self.now += self._launch_s
        if len(self._queue) == QUEUE:
            self.now = max(self.now, self._queue.popleft())
        self.ends = max(self.ends, self.now) + seconds
        self._queue.append(self.ends)

    def wait_until(self, moment: float) -> None:
        """Enqueue a wait of the stream, as for a message of another worker."""
        self.ends = max(self.ends, self.now, moment)

    def synchronize(self) -> None:
        """The host waits for the device."""
        self.now = max(self.now, self.ends)

    def event(self) -> SimulatedEvent:
        self.events += 1
        return SimulatedEvent(self)

    @contextmanager
    def clock(self) -> Iterator[None]:
        """Let the host's clock be that of `time`."""
        with patch("time.perf_counter", lambda: self.now):
            yield


class SimulatedEvent:
    """`torch.cuda.Event(enable_timing=True)` on the simulated stream."""

    def __init__(self, device: SimulatedDevice) -> None:
        self._device = device
        self._at: float | None = None

    def record(self) -> None:
        self._at = max(self._device.ends, self._device.now)

    def query(self) -> bool:
        return self._at is None or self._at <= self._device.now

    def synchronize(self) -> None:
        if self._at is not None:
            self._device.now = max(self._device.now, self._at)

    def elapsed_time(self, end: SimulatedEvent) -> float:
        if self._at is None or end._at is None:
            raise RuntimeError("Both events must be recorded before calculating elapsed time.")
        if not (self.query() and end.query()):
            raise RuntimeError("Both events must be completed before calculating elapsed time.")
        return float(np.float32(1000 * (end._at - self._at)))
