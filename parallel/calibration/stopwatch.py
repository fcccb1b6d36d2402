"""Time stamps that measure a worker's device."""

from __future__ import annotations

import time
from typing import Any

import torch


class Stopwatch:
    """Time stamps on the host's clock, or for CUDA as events in the device's stream."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"

    def mark(self) -> Any:
        """Return a time stamp."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, begin: Any, end: Any) -> float:
        """Return the seconds between two time stamps; on CUDA, wait for the device first."""
        if not self._cuda:
            return end - begin
        end.synchronize()
        return begin.elapsed_time(end) / 1000
