"""The machine that a calibration belongs to, and the path where the calibration is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch

from parallel.config import ClusterConfig
from parallel.results.environment import cpu_model, usable_cpus

WORKERS = "workers"


def machine_of(
    config: ClusterConfig, workers: int, nodes: int = 1, memory_format: str = "channels_last"
) -> dict[str, str]:
    """Return the properties of this machine and configuration that times depend on."""
    cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    name = torch.cuda.get_device_name(0) if cuda and torch.cuda.is_available() else str(cpu_model())
    return {
        "device": f"{'cuda' if cuda else 'cpu'}: {name}",
        "cores": str(usable_cpus()),
        "threads of a worker": str(config.threads),
        "messages": "shared memory" if config.shared_memory and not cuda else "network",
        "torch": str(torch.__version__),
        "memory format": memory_format,
        "nodes": str(nodes),
        WORKERS: str(workers),
    }


def differences(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """Return the differences besides the number of workers, as `cores 4 instead of 2`."""
    return [
        f"{key} {there.get(key)} instead of {here.get(key)}"
        for key in dict.fromkeys([*there, *here])
        if key not in (WORKERS, "nodes") and there.get(key) != here.get(key)
    ]


def calibration_path(config: ClusterConfig, machine: Mapping[str, str]) -> Path:
    """Return the path of a machine's calibration."""
    return Path(config.cache) / f"{fingerprint_of(machine)}.yaml"


def fingerprint_of(machine: Mapping[str, str]) -> str:
    """Return eight hexadecimal digits that identify a machine."""
    return hashlib.sha256(repr(sorted(machine.items())).encode()).hexdigest()[:8]
