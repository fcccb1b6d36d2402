"""Measure this cluster: torchrun --standalone --nproc-per-node N -m parallel.calibrate [override …]

    torchrun --standalone --nproc-per-node 2 -m parallel.calibrate data=digits trainer.batch_size=128 workers=2

measures, all workers at once, what the parts of a step take: every op in every shape that a plan could give it, adding
and updating, messages by their size, computing beside messages, a step's overhead, and loading. The arguments are those
of parallel.train (model, image size, precision, batch, threads; `cluster.file=PATH` to write somewhere else than to
cluster.cache), and

    calibrate.budget_s=180   seconds to measure, about; what does not fit in is predicted by a learned model, whose
                             cross-validated error is printed
    calibrate.fresh=true     forget what was measured before; otherwise only what is missing is measured

Exit code 2 for a configuration that cannot be.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from parallel.calibration.display import Show, show_accuracy, show_cluster
from parallel.calibration.measure import Calibration, memory_format, nodes
from parallel.calibration.settings import Settings
from parallel.cli.compose import compose_config
from parallel.cli.ranks import Ranks
from parallel.cluster import Cluster, Measured, read_cluster, write_cluster
from parallel.cluster.machine import calibration_path, differences, machine_of
from parallel.cluster.regression import cross_validate
from parallel.config import Config, require
from parallel.data import open_data
from parallel.graph import trace
from parallel.models import build_model
from parallel.runtime.communication.world import World, choose_device, open_world

WIDTH = 100
"""Columns of the console when it is no terminal."""


def calibrate(config: Config, settings: Settings) -> None:
    """Measure on the workers that torchrun started; worker 0 writes the cluster file and prints what was found."""
    choose_device(config.cluster)
    first = os.environ.get("RANK", "0") == "0"
    data = open_data(config.data, config.model.image_size, config.trainer.seed, first)
    side = config.model.image_size
    with torch.device("meta"):
        graph = trace(build_model(config.model, data.num_classes, 0), (3, side, side))
    console = Console(file=sys.stdout)
    console = console if console.is_terminal else Console(file=sys.stdout, width=WIDTH)
    with open_world(config.cluster) as world:
        path, known = _known(config, settings, world)
        with Show(console, enabled=world.rank == 0) as show:
            cluster = Calibration(config, settings, world, data, graph, show, known).run()
        if world.rank > 0:
            return
        _write(cluster, path)
        show_cluster(cluster, console)
        if isinstance(cluster.compute, Measured):
            show_accuracy(cross_validate(cluster.compute.table.ops[config.trainer.precision]), console)
        print(f"cluster: {path}", flush=True)


def _known(config: Config, settings: Settings, world: World) -> tuple[Path, Cluster | None]:
    """Where the calibration goes, and what is there already; read by worker 0, for others may not see the file."""
    machine = machine_of(config.cluster, world.size, nodes(), memory_format(config.trainer.channels_last))
    named = config.cluster.file
    path = calibration_path(config.cluster, machine) if named is None else Path(named)
    text = path.read_text(encoding="utf-8") if world.rank == 0 and path.is_file() and not settings.fresh else None
    text = world.gather(text)[0]
    if text is None:
        return path, None
    known = read_cluster(text)
    differ = differences(known.machine, machine)
    differ += ["workers"] if known.machine.get("workers") != machine["workers"] else []
    require(not differ, "cluster.file", path, f"is another machine's ({', '.join(differ)}): choose another file, or "
            "calibrate.fresh=true to replace it")
    return path, known


def _write(cluster: Cluster, path: Path) -> None:
    """All of the file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(write_cluster(cluster), encoding="utf-8")
    part.replace(path)


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    if "--help" in arguments or "-h" in arguments:
        print(__doc__, end="")
        return 0
    try:
        ranks = Ranks.from_environment(os.environ)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        settings, overrides = Settings.split(arguments)
        config = compose_config(overrides)
        workers = config.workers or ranks.world
        require(workers == ranks.world, "workers", workers, f"needs a world of {workers}, and this one has "
                f"{ranks.world}: use `torchrun --standalone --nproc-per-node {workers} -m parallel.calibrate …`")
        calibrate(config, settings)
    except ValueError as error:
        message = " ".join(str(error).split())
        if ranks.report(message, f"error: {message}"):
            print(f"error: {message}", file=sys.stderr, flush=True)
        return _end(2, ranks)
    except KeyboardInterrupt:
        return _end(130, ranks)
    except Exception as error:
        ranks.report(f"{type(error).__name__}: {error}", traceback.format_exc())
        traceback.print_exc()
        return _end(1, ranks)
    return 0


def _end(code: int, ranks: Ranks) -> int:
    """With more ranks the process ends at once: taking down the process group could wait for those that are gone."""
    if ranks.world > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
