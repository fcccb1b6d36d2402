"""The loss that a progress bar shows, read without waiting for the device.

Reading the loss of the step that the host has just launched would wait until the device has done it, and
the device would then starve until the host has launched more. So a read starts a copy to the host, and
returns what an earlier copy brought.
"""

from __future__ import annotations

import torch
from torch import Tensor


class LateLoss:
    """The last loss that has arrived on the host."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._host = torch.zeros((), dtype=torch.float64, pin_memory=self._cuda)
        self._copied: torch.cuda.Event | None = None
        """Behind the copy that is under way."""
        self._value: float | None = None

    def read(self, loss: Tensor) -> float | None:
        """Return the last loss that has arrived, if any, and start to copy `loss` unless a copy is under
        way. On a CPU it arrives at once."""
        if self._copied is not None:
            if not self._copied.query():
                return self._value
            self._value = self._host.item()
        self._host.copy_(loss.detach(), non_blocking=True)
        if self._cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()
        else:
            self._value = self._host.item()
        return self._value
