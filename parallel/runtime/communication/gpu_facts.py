"""Facts about GPUs that explain times: versions of the libraries, clocks, and the switches in effect."""

from __future__ import annotations

import subprocess
from typing import Any

import torch

from parallel.runtime.communication.device_flags import flags_in_effect

QUERY = {
    "driver": "driver_version",
    "power_limit_w": "power.limit",
    "sm_clock_mhz": "clocks.current.sm",
    "max_sm_clock_mhz": "clocks.max.sm",
    "max_memory_clock_mhz": "clocks.max.memory",
    "persistence": "persistence_mode",
    "mig": "mig.mode.current",
}
"""Key in the record, and nvidia-smi's name."""
_TIMEOUT_S = 10


def gpu_facts(device: torch.device) -> dict[str, Any]:
    """Return the facts about the visible GPUs, as plain values; empty on CPUs."""
    if device.type != "cuda":
        return {}
    smi = ask_nvidia_smi()
    uuids = [_uuid(index) for index in range(torch.cuda.device_count())]
    gpus = [
        {
            "name": torch.cuda.get_device_name(index),
            "memory_bytes": torch.cuda.get_device_properties(index).total_memory,
            **smi.get(uuid, {}),
        }
        for index, uuid in enumerate(uuids)
    ]
    drivers = sorted({str(gpu.pop("driver")) for gpu in gpus if "driver" in gpu})
    return {
        "runtime": torch.version.cuda,
        "driver": ", ".join(drivers) or None,
        "cudnn": cudnn_text(torch.backends.cudnn.version()),
        "nccl": nccl_version(),
        "flags": {**flags_in_effect(), "cudnn_benchmark": torch.backends.cudnn.benchmark},
        "devices": gpus,
    }


def nccl_version() -> str | None:
    """Return the version of NCCL; None for a build without it."""
    if not torch.distributed.is_nccl_available():
        return None
    return ".".join(map(str, torch.cuda.nccl.version()))


def cudnn_text(version: int | None) -> str | None:
    """Return cuDNN's number as text: 91002 is 9.10.2, and 8902, of the older form, 8.9.2."""
    if version is None:
        return None
    major, rest = divmod(version, 10_000 if version >= 90_000 else 1_000)
    return f"{major}.{rest // 100}.{rest % 100}"


def ask_nvidia_smi() -> dict[str, dict[str, Any]]:
    """Return the facts that nvidia-smi knows about each GPU by UUID; empty if it does not answer."""
    command = ["nvidia-smi", f"--query-gpu=uuid,{','.join(QUERY.values())}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return parse_nvidia_smi(done.stdout) if done.returncode == 0 else {}


def parse_nvidia_smi(table: str) -> dict[str, dict[str, Any]]:
    """Return the facts in nvidia-smi's table by UUID, without those that a GPU does not have."""
    found: dict[str, dict[str, Any]] = {}
    for line in table.splitlines():
        uuid, *cells = (cell.strip() for cell in line.split(","))
        if len(cells) == len(QUERY):
            found[uuid] = {
                key: _value(key, cell)
                for key, cell in zip(QUERY, cells, strict=True)
                if cell and not cell.startswith(("[", "N/A"))
            }
    return found


def _value(key: str, cell: str) -> str | float:
    """Return a cell as a number if its key has a unit."""
    if not key.endswith(("_w", "_mhz")):
        return cell
    try:
        return float(cell)
    except ValueError:
        return cell


def _uuid(index: int) -> str:
    """Return a GPU's UUID as nvidia-smi writes it."""
    uuid = str(torch.cuda.get_device_properties(index).uuid)
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
