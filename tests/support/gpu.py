"""Tests on machines with GPUs: those that need one are marked, and the others see none.

`cluster.device=auto` is then the CPU in all tests, in their fixtures and in the processes that they start.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch

NEEDS_GPU, NEEDS_TWO_GPUS = "needs a GPU", "needs two GPUs"
GPU_REASONS = (NEEDS_GPU, NEEDS_TWO_GPUS)
"""Reasons of the marks below, by which GPUs are shown. The machine is asked here, before they are hidden."""
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason=NEEDS_GPU)
needs_two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason=NEEDS_TWO_GPUS)
VISIBLE = "CUDA_VISIBLE_DEVICES"


class HiddenGpus:
    """Hides all GPUs from this process, in which torch may have seen them, and from those that it starts."""

    def __init__(self) -> None:
        self._shown = os.environ.get(VISIBLE)
        self._patches = [
            patch.dict(os.environ, {VISIBLE: ""}),
            patch("torch.cuda.is_available", lambda: False),
            patch("torch.cuda.device_count", lambda: 0),
        ]

    def hide(self) -> None:
        """Hide them until the process ends, but for the blocks of `shown`."""
        for each in self._patches:
            each.start()

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show them for a block."""
        available, counted = self._patches[1:]
        for each in (available, counted):
            each.stop()
        hidden = os.environ.pop(VISIBLE)
        if self._shown is not None:
            os.environ[VISIBLE] = self._shown
        try:
            yield
        finally:
            os.environ[VISIBLE] = hidden
            for each in (available, counted):
                each.start()
