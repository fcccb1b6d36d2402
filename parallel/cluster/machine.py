"""The machine that a calibration belongs to, and the path where the calibration is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from parallel.config import ClusterConfig, require
from parallel.config.checks import MOST_DIGITS, MOST_WORKERS
from parallel.results.environment import cpu_model, describe_emulated, emulated_cluster, usable_cpus

NODES, WORKERS = "nodes", "workers"


def machine_of(
    config: ClusterConfig, node_workers: Sequence[int], memory_format: str = "channels_last"
) -> dict[str, str]:
    """Return the properties of this machine and configuration that times depend on.

    `node_workers`: workers of each node.
    """
    cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    name = torch.cuda.get_device_name(0) if cuda and torch.cuda.is_available() else str(cpu_model())
    emulated = emulated_cluster()
    return {
        "device": f"{'cuda' if cuda else 'cpu'}: {name}",
        "cores": str(usable_cpus()),
        "threads of a worker": str(config.threads),
        "messages": "shared memory" if config.shared_memory and not cuda else "network",
        "torch": str(torch.__version__),
        "memory format": memory_format,
        NODES: _nodes_text(node_workers),
        **({} if emulated is None else {"network": describe_emulated(emulated)}),
        WORKERS: str(sum(node_workers)),
    }


def memory_format(channels_last: bool) -> str:
    """Return the memory format's name in machines and tables."""
    return "channels_last" if channels_last else "contiguous"


def _nodes_text(node_workers: Sequence[int]) -> str:
    """Return `2` for nodes with equal numbers of workers, and `2 + 1` for others."""
    if len(set(node_workers)) == 1:
        return str(len(node_workers))
    return " + ".join(map(str, node_workers))


def node_workers_of(machine: Mapping[str, str]) -> tuple[int, ...]:
    """Return the workers of each node of a calibrated machine. `ValueError` for other text."""
    workers, nodes = machine.get(WORKERS, ""), machine.get(NODES, "1")
    for name, text, counts in ((WORKERS, workers, [workers]), (NODES, nodes, nodes.split(" + "))):
        require(
            all(
                count.isdecimal() and len(count) <= MOST_DIGITS and 0 < int(count) <= MOST_WORKERS
                for count in counts
            ),
            f"machine.{name}",
            text,
            "must be a whole number"
            if name == WORKERS
            else "must be a number of nodes, or the workers of each: 2 + 1",
        )
    listed = tuple(map(int, nodes.split(" + ")))
    of_each = listed if len(listed) > 1 else (int(workers) // listed[0],) * listed[0]
    require(
        sum(of_each) == int(workers) and 0 not in of_each,
        f"machine.{NODES}",
        nodes,
        f"must have {WORKERS}={workers} in all",
    )
    return of_each


def on_same_nodes(there: Sequence[int], here: Sequence[int]) -> bool:
    """Return whether the first workers of a calibrated machine lie on nodes as these workers do."""
    left, nodes = sum(here), list[int]()
    for count in there:
        if left > 0:
            nodes.append(min(count, left))
            left -= nodes[-1]
    return left == 0 and nodes == list(here)


def differences(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """Return the differences besides the numbers of workers and nodes, as `cores 4 instead of 2`."""
    return [
        f"{key} {there.get(key)} instead of {here.get(key)}"
        for key in dict.fromkeys([*there, *here])
        if key not in (WORKERS, NODES) and there.get(key) != here.get(key)
    ]


def calibration_path(config: ClusterConfig, machine: Mapping[str, str]) -> Path:
    """Return the path of a machine's calibration."""
    return Path(config.cache) / f"{fingerprint_of(machine)}.yaml"


def fingerprint_of(machine: Mapping[str, str]) -> str:
    """Return eight hexadecimal digits that identify a machine."""
    return hashlib.sha256(repr(sorted(machine.items())).encode()).hexdigest()[:8]
