"""How much memory there is for this worker."""

from __future__ import annotations

import os
from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")


def available_memory(device: torch.device) -> int | None:
    """Bytes: free on the GPU; on a CPU an equal share, for each worker on this host, of what can be had without
    swapping. None where the system does not tell (it is Linux that does)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if not MEMINFO.is_file():
        return None
    for line in MEMINFO.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024 // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return None
