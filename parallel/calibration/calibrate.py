"""Calibrate this machine on the workers that torchrun started, and write the cluster file."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from parallel.calibration.calibration_file import known_calibration, write_calibration
from parallel.calibration.measure import measure_cluster
from parallel.calibration.options import CalibrationOptions
from parallel.calibration.progress import PhaseProgress
from parallel.calibration.setup import Setup
from parallel.cluster import Cluster
from parallel.config import Config
from parallel.data import open_data
from parallel.graph import trace
from parallel.models import build_model
from parallel.runtime.communication.device import choose_device
from parallel.runtime.communication.opening import open_world


def calibrate(
    config: Config, options: CalibrationOptions, rank: int, console: Console
) -> tuple[Path, Cluster]:
    """Measure and write the cluster file; return its path and the cluster.

    Every worker calls this; worker 0 writes.
    """
    config.cluster.require_own_gpus("calibration")
    choose_device(config.cluster)
    with open_world(config.cluster, precision=config.trainer.precision) as world:
        world.watch.does("opening the data")  # may take long: the workers watch each other meanwhile
        data = open_data(config.data, config.model.image_size, config.trainer.seed, rank == 0)
        world.watch.goes_on()
        side = config.model.image_size
        with torch.device("meta"):
            graph = trace(build_model(config.model, data.num_classes, 0), (3, side, side))
        path, known = known_calibration(config, options, world)
        with PhaseProgress(console, enabled=rank == 0) as progress:
            cluster = measure_cluster(Setup(config, options, world, data, graph, known, progress))
        if rank == 0:
            write_calibration(cluster, path)
    return path, cluster
