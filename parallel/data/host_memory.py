"""The memory that this process may use on its host."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from parallel.config import require

MEMINFO = Path("/proc/meminfo")
OWN_GROUPS = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class _Files:
    """Files in which the kernel reports a control group's memory."""

    limit: str
    usage: str
    reclaimable: str
    """Line of memory.stat: reclaimable file cache, which the usage includes."""


V2 = _Files("memory.max", "memory.current", "inactive_file")
V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def host_memory() -> int | None:
    """Return this worker's equal share of the host's memory that is available without swapping,
    within the limits of its control groups, in bytes.

    None where the system does not report it; only Linux does.
    """
    if not MEMINFO.is_file():
        return None
    free = [int(value.split()[0]) * 1024 for name, value in _pairs(MEMINFO, ":") if name == "MemAvailable"]
    if not free:
        return None
    return min([*free, *_left_in_groups()]) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def require_memory(name: str, value: object, nbytes: int) -> None:
    """Raise `ValueError` that names the option `name` if there is less memory than `nbytes`."""
    there = host_memory()
    require(
        there is None or nbytes <= there,
        name,
        value,
        f"needs {nbytes / 1e9:,.1f} GB of memory for the data set, and {(there or 0) / 1e9:.1f} GB are free",
    )


def _left_in_groups() -> Iterator[int]:
    """Yield the memory that each control group of this process leaves it, own group first."""
    if not OWN_GROUPS.is_file():
        return
    for line in OWN_GROUPS.read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, files = GROUPS, V2
        elif "memory" in controllers.split(","):
            root, files = GROUPS / "memory", V1
        else:
            continue
        group = root / path.lstrip("/")  # absent within a container, whose root is its group
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            if (folder / files.limit).is_file():
                limit = (folder / files.limit).read_text().strip()
                used = int((folder / files.usage).read_text())
                statistics = _pairs(folder / "memory.stat", " ")
                cache = [int(value) for name, value in statistics if name == files.reclaimable]
                if limit != "max":
                    yield max(0, int(limit) - used + sum(cache))


def _pairs(path: Path, separator: str) -> Iterator[tuple[str, str]]:
    for line in path.read_text().splitlines():
        name, _, value = line.partition(separator)
        yield name, value
