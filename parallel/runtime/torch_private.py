"""Private interfaces of torch, each with the reason why no public one serves.

`tests/unit/test_torch_private.py` fails when one of them disappears.
"""

from __future__ import annotations

import torch


def profiler_is_active() -> bool:
    """Return whether torch's profiler is recording.

    `torch.profiler.record_function` takes some 10 µs even when no profiler is active, and there is
    no public way to ask for one.
    """
    return torch.autograd._profiler_enabled()
