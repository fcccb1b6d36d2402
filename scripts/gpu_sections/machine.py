"""Section `machine`: GPUs, clocks, driver, libraries, commit."""

from __future__ import annotations

from typing import Any

import torch

from gpu_sections.section import Ending, Setting, markdown_row, table_head
from parallel.results.environment import collect_environment
from parallel.results.formatting import size
from parallel.runtime.communication.gpu_facts import ask_nvidia_smi, gpu_facts, nccl_version

FACTS = ("os", "cpu", "cpu_count", "memory_bytes", "python", "torch", "parallel", "git_commit", "git_dirty")


def run(setting: Setting) -> Ending:
    """Write the facts."""
    cuda = gpu_facts(torch.device(setting.device))
    environment = collect_environment(cuda=cuda)
    setting.write(*table_head(("fact", "value")))
    for name in FACTS:
        setting.write(row(name, environment.get(name)))
    setting.write(row("NCCL in torch", nccl_version()))
    for name, value in cuda.items():
        if name != "devices":
            setting.write(row(f"cuda {name}", value))
    for index, gpu in enumerate(cuda.get("devices", [])):
        setting.write(row(f"GPU {index}", gpu))
    setting.write(row("environment variables", environment["variables"]), "")
    return Ending.PASSED


def clocks_text(device: torch.device) -> list[str]:
    """Return lines with the GPUs' clocks now. Directly after work they are those of the work; those of an
    idle GPU are several times lower."""
    if device.type != "cuda":
        return []
    clocks = [
        f"{facts.get('sm_clock_mhz', '?')} of {facts.get('max_sm_clock_mhz', '?')} MHz, power limit "
        f"{facts.get('power_limit_w', '?')} W"
        for facts in ask_nvidia_smi().values()
    ]
    return [f"SM clock just after the work: {'; '.join(clocks) or 'not known'}.", ""]


def row(name: str, value: Any) -> str:
    """Return a fact as a row of the table."""
    if isinstance(value, dict):
        value = ", ".join(f"{key}={_sized(key, inner)}" for key, inner in value.items())
    return markdown_row((name.replace("_", " "), _sized(name, value)))


def _sized(name: str, value: Any) -> str:
    return size(value) if name.endswith("_bytes") and value is not None else str(value)
