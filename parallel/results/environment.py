"""Where a run took place: host, hardware, versions, commit. Kept with every record, so that a time can be explained."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = {"torch": "torch", "numpy": "numpy", "hydra": "hydra-core", "wandb": "wandb",
            "parallel": "parallel-experiments"}
"""Key in the record, and the name that the package is installed under."""
VARIABLES = ("OMP_", "MKL_", "KMP_", "MALLOC_", "GLOO_", "NCCL_", "TORCH_NCCL_", "CUDA_VISIBLE_DEVICES", "LD_PRELOAD")
"""Beginnings of the names of environment variables that change how fast a run is."""


def collect_environment(gpus: Sequence[str] = ()) -> dict[str, Any]:
    """The environment as a record keeps it; a value that cannot be found out is None.

    `gpus`: their names, a GPU per entry, from whoever talks to the device: this module imports no torch.
    """
    commit, dirty = _git_commit()
    return {
        "host": socket.gethostname(),
        "os": platform.platform(),
        "cpu": cpu_model(),
        "cpu_count": usable_cpus(),
        "memory_bytes": memory_bytes(),
        "gpus": list(gpus),
        "python": platform.python_version(),
        **{key: _version(package) for key, package in PACKAGES.items()},
        "git_commit": commit,
        "git_dirty": dirty,
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(VARIABLES)},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_model() -> str | None:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine() or None


def usable_cpus() -> int | None:
    """The cores this process may run on, which a container or taskset can make fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def memory_bytes() -> int | None:
    """Of this machine."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _git_commit() -> tuple[str | None, bool | None]:
    """The commit of this package's checkout, and whether tracked files differ from it; (None, None) outside one."""
    here = Path(__file__).resolve()
    # An installed copy may lie inside some other repository; that one's commit says nothing about this code.
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None, None
    commit, changes = _git(here.parent, "rev-parse", "HEAD"), _git(here.parent, "status", "--porcelain", "-uno")
    return (commit, None) if commit is None or changes is None else (commit, bool(changes))


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
