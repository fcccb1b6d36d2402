"""Compose and validate the jobs of a sweep, for the launchers that run them in other processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from parallel.cli.application import fit_world
from parallel.cli.compose import quote, refuse_targets, to_config
from parallel.cli.sweep import Job
from parallel.config import require

SWEEP_KEYS = (
    "hydra.mode",
    "hydra.sweep",
    "hydra.run",
    "hydra.launcher",
    "hydra/launcher",
    "hydra.sweeper",
    "hydra/sweeper",
    "hydra.job.config",
)
"""Hydra overrides of the sweep itself; all others also apply to its jobs."""


def compose_job(
    loader: ConfigLoader, sweep: DictConfig, overrides: Sequence[str], index: int, suffix: str = ""
) -> Job:
    """Return job number `index` of a sweep, composed in the same way as its processes will.

    `sweep` is Hydra's configuration of the sweep, `suffix` the end of the name of the job's folder.
    Raises `ValueError` if the job is invalid.
    """
    node = loader.load_sweep_config(sweep, list(overrides))
    with open_dict(node):
        node.hydra.job.id, node.hydra.job.num = str(index), index
    HydraConfig.instance().set_config(node)
    refuse_targets(node)
    config = to_config(node)
    workers = config.worker_count()
    launcher = sweep.hydra.runtime.choices["hydra/launcher"]
    require(
        config.strategy.fixed_workers is not None or config.workers is not None,
        "workers",
        config.workers,
        f"must be set for strategy={config.strategy.name} with hydra/launcher={launcher}, as in workers=2",
    )
    sweep_dir = Path(node.hydra.sweep.dir).absolute()
    run_dir = sweep_dir / f"{node.hydra.sweep.subdir}{suffix}"
    forwarded = [
        str(override)
        for override in sweep.hydra.overrides.hydra
        if not str(override).lstrip("+~").startswith(SWEEP_KEYS)
    ]
    return Job(
        index=index,
        overrides=(*overrides, *forwarded, f"hydra.run.dir={quote(str(run_dir))}"),
        config=fit_world(config, workers, launched=True),
        workers=workers,
        run_dir=run_dir,
        sweep_dir=sweep_dir,
    )
