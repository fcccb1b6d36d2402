"""The memory available to this worker."""

from __future__ import annotations

import torch

from parallel.data.host_memory import host_memory


def available_memory(device: torch.device) -> int | None:
    """Return the available memory in bytes, or None where the system does not report it.

    On a GPU it is the free memory, on a CPU this worker's share of the host's.
    """
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host_memory()
