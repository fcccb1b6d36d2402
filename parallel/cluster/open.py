"""Open the configured cluster: a cluster file, one of conf/cluster/, or this machine's
calibration."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from parallel.cluster.cluster import Cluster
from parallel.cluster.files import cluster_of, read_cluster
from parallel.cluster.machine import (
    WORKERS,
    differences,
    machine_of,
    memory_format,
    node_workers_of,
    on_same_nodes,
)
from parallel.config import ClusterConfig, one_line, require
from parallel.config.documents import from_yaml, read_text
from parallel.config.typed import structure

LONGEST_LINE = 10_000
"""Characters of a calibrated file that are read at once."""


def open_cluster(
    config: ClusterConfig,
    workers: int,
    node_workers: Sequence[int] | None = None,
    *,
    channels_last: bool = True,
) -> Cluster:
    """Return the configured cluster with at least `workers` workers.

    It is `cluster.file`, else `cluster.hardware`, else the calibration of this machine.

    A cluster written by hand grows by nodes if it has a link between nodes; a calibrated one has
    the workers that it was calibrated with. `node_workers`, if known, are the workers of each host of
    this run: a calibration on other hosts is not used. Without it, the calibration on the fewest hosts
    is. `channels_last`: the memory format of training, which a calibration must have. Warns if the
    calibration belongs to another machine.
    Raises `ValueError` for invalid numbers, for too many workers, and if this machine is not
    calibrated.
    """
    if config.file is not None:
        cluster = _read(Path(config.file))
    elif config.hardware is not None:
        cluster = cluster_of(config.hardware)
    else:
        cluster = _calibrated(config, workers, node_workers, channels_last)
    if cluster.machine:
        here = machine_of(config, [workers], memory_format(channels_last))
        differ = differences(cluster.machine, here)
        if differ:
            warnings.warn(
                f"cluster {cluster.name} was calibrated on another machine: "
                f"{', '.join(differ)}; its times may not be those of this one",
                stacklevel=2,
            )
    device = cluster.machine.get("device", config.device)
    collectives = device.startswith("cuda") and not config.share_gpu
    return replace(cluster, collectives=collectives).resized(workers)


def _read(path: Path) -> Cluster:
    try:
        written = read_text(path)
    except ValueError as error:
        raise ValueError(f"cluster.file={error}") from error
    try:
        return read_cluster(written)
    except ValueError as error:
        raise ValueError(f"cluster.file={path}: {error}") from error


def _calibrated(
    config: ClusterConfig, workers: int, node_workers: Sequence[int] | None, channels_last: bool
) -> Cluster:
    """Return the calibration of this machine with the fewest workers that suffice."""
    here, enough = machine_of(config, [workers], memory_format(channels_last)), []
    for path in sorted(Path(config.cache).glob("*.yaml")):
        machine = _machine_in(path)
        if not machine or differences(machine, here) or int(machine[WORKERS]) < workers:
            continue
        nodes = _nodes_in(machine, path)
        if node_workers is None or on_same_nodes(nodes, node_workers):
            enough.append((int(machine[WORKERS]), len(nodes), str(path)))
    if not enough:
        several = node_workers is not None and len(node_workers) > 1
        hosts = f" on hosts with {' + '.join(map(str, node_workers or ()))}" if several else ""
        raise ValueError(
            f"cluster=local is not calibrated for workers={workers}{hosts}, "
            f"cluster.threads={config.threads} on "
            f"this machine ({here['device']}): run `python -m parallel.torchrun --nproc-per-node {workers} -m "
            f"parallel.calibrate workers={workers} …` with the same configuration, or "
            "choose a cluster file with cluster=…"
        )
    return _read(Path(min(enough)[-1]))


def _nodes_in(machine: Mapping[str, str], path: Path) -> tuple[int, ...]:
    try:
        return node_workers_of(machine)
    except ValueError as error:
        raise ValueError(f"cluster.cache: {path} is damaged ({error}): delete it") from error


def _machine_in(path: Path) -> dict[str, str]:
    """Return the machine in a calibrated file, reading only the beginning of it."""
    lines = list[str]()
    try:
        with open(path, encoding="utf-8") as file:
            while line := file.readline(LONGEST_LINE):
                if lines and not line.startswith(" "):
                    break
                if lines or line.rstrip() == "machine:":
                    lines.append(line)
        machine = structure(dict[str, Any], from_yaml("".join(lines))["machine"] if lines else {}, "machine")
        require(
            not machine or str(machine.get(WORKERS)).isdecimal(),
            f"machine.{WORKERS}",
            machine.get(WORKERS),
            "must be a whole number",
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"cluster.cache: {path} is damaged ({one_line(error)}): delete it") from error
    return {key: str(value) for key, value in machine.items()}
