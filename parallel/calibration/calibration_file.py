"""Find, check and write the file with the calibration of a machine."""

from __future__ import annotations

from pathlib import Path

from parallel.calibration.options import CalibrationOptions
from parallel.cluster import Cluster, read_cluster, write_cluster
from parallel.cluster.machine import NODES, WORKERS, calibration_path, differences, machine_of, memory_format
from parallel.config import Config, require
from parallel.config.documents import read_text
from parallel.results.json_files import write_atomically
from parallel.runtime.communication.world import World


def known_calibration(
    config: Config, options: CalibrationOptions, world: World
) -> tuple[Path, Cluster | None]:
    """Return the path of the calibration file, and the calibration in it, if any.

    Worker 0 reads the file, since other workers may not have access to it. Raises `ValueError`, on
    all workers, for a file that it cannot read and for the calibration of another machine.
    """
    machine = machine_of(config.cluster, world.node_workers, memory_format(config.trainer.channels_last))
    named = config.cluster.file
    path = calibration_path(config.cluster, machine) if named is None else Path(named)
    text = world.from_first(lambda: read_text(path) if path.is_file() and not options.fresh else None)
    if text is None:
        return path, None
    known = read_cluster(text)
    differ = differences(known.machine, machine)
    differ += [name for name in (NODES, WORKERS) if known.machine.get(name) != machine[name]]
    require(
        not differ,
        "cluster.file",
        path,
        f"is another machine's ({', '.join(differ)}): choose another file, or "
        "calibrate.fresh=true to replace it",
    )
    return path, known


def write_calibration(cluster: Cluster, path: Path) -> None:
    """Write the file completely or, if that fails, not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, write_cluster(cluster).encode())
