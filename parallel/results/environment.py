"""The environment of a run: host, hardware, versions, commit. Every record has it, to explain
differences in time."""

from __future__ import annotations

import json
import math
import os
import platform
import socket
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = {
    "torch": "torch",
    "numpy": "numpy",
    "hydra": "hydra-core",
    "wandb": "wandb",
    "parallel": "parallel-experiments",
}
"""Key in the record, and name of the distribution."""
VARIABLES = (
    "OMP_",
    "MKL_",
    "KMP_",
    "MALLOC_",
    "GLOO_",
    "NCCL_",
    "TORCH_NCCL_",
    "NVIDIA_TF32_OVERRIDE",
    "CUDA_VISIBLE_DEVICES",
    "LD_PRELOAD",
)
"""Prefixes of environment variables that influence speed."""
EMULATED = "PARALLEL_EMULATED"
"""Environment variable of processes in an emulated cluster: a JSON object with `hosts`, and with the
`rate`, `delay` and `speed` of its links and hosts."""

SIDE_BY_SIDE = "PARALLEL_SIDE_BY_SIDE"
"""Environment variable of the processes of jobs that share a machine with others: the number of jobs
at a time."""


def collect_environment(gpus: Sequence[str] = (), cuda: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the environment for a record; unknown values are None.

    gpus: name of each GPU; cuda: versions, clocks and switches (`gpu_facts`). Both come from a caller
    that uses the device, because this module does not import torch.
    """
    commit, dirty = _git_commit()
    return {
        "host": socket.gethostname(),
        "os": platform.platform(),
        "cpu": cpu_model(),
        "cpu_count": usable_cpus(),
        "machine_cpus": os.cpu_count(),
        "memory_bytes": memory_bytes(),
        "gpus": list(gpus),
        **({"cuda": dict(cuda)} if cuda else {}),
        "python": platform.python_version(),
        **{key: _version(package) for key, package in PACKAGES.items()},
        "git_commit": commit,
        "git_dirty": dirty,
        **({} if (link := emulated_cluster()) is None else {"emulated": link}),
        **({} if (jobs := os.environ.get(SIDE_BY_SIDE)) is None else {"side_by_side": int(jobs)}),
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(VARIABLES)},
    }


def emulated_cluster() -> dict[str, Any] | None:
    """Return the emulated cluster that this process runs in. None: its hosts are real."""
    text = os.environ.get(EMULATED)
    return None if text is None else dict(json.loads(text))


def describe_emulated(cluster: Mapping[str, Any]) -> str:
    """Return an emulated cluster in words: `2 emulated hosts, rate 1gbit, speed 100%, 50%`."""

    def value(name: str) -> str:
        found = cluster.get(name)
        return ", ".join(map(str, found)) if isinstance(found, list) else str(found)

    parts = [f"{name} {value(name)}" for name in ("rate", "delay") if cluster.get(name) is not None]
    parts += [f"speed {value('speed')}"] if cluster.get("speed", "100%") != "100%" else []
    return ", ".join([f"{cluster.get('hosts')} emulated hosts", *parts])


def describe_machine(environment: Mapping[str, Any]) -> str:
    """Return what is known of a machine beside its processor: `64 cores, 96 GB`; maybe nothing.

    The cores are all that it has: those that a run may use depend on its workers under Slurm.
    """
    cores = environment.get("machine_cpus")
    if cores is None and environment.get("side_by_side") is None:
        cores = environment.get("cpu_count")  # of earlier versions; jobs side by side had a part of them
    memory = environment.get("memory_bytes")
    parts = [] if cores is None else [f"{cores:,} core{'s' * (cores != 1)}"]
    return ", ".join([*parts, *([f"{nominal_gb(memory):g} GB"] if memory else [])])


def nominal_gb(memory: int) -> float:
    """Return the usual size of memory that is nearest: 2^n or 1.5 × 2^n GiB.

    Systems of one kind see a little less than that, and not all the same.
    """
    power = 2.0 ** math.floor(math.log2(memory / 2**30))
    return min((power, 1.5 * power, 2 * power), key=lambda size: abs(size - memory / 2**30))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_model() -> str | None:
    """Return the name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine() or None


def usable_cpus() -> int | None:
    """Return the number of cores this process may use; containers and taskset can restrict it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def memory_bytes() -> int | None:
    """Return the memory of this machine."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _git_commit() -> tuple[str | None, bool | None]:
    """Return the commit of this checkout and whether tracked files differ; (None, None) without
    one."""
    here = Path(__file__).resolve()
    # An installed copy may lie inside another repository, whose commit does not describe this code.
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None, None
    commit = _git(here.parent, "rev-parse", "HEAD")
    changes = _git(here.parent, "status", "--porcelain", "-uno")
    return (commit, None) if commit is None or changes is None else (commit, bool(changes))


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
