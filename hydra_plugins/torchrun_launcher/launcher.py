"""Hydra launcher for `-m … hydra/launcher=torchrun`: composes every job; `parallel.cli.sweep` runs
them.

Hydra imports every plugin at the start of any application, before the module is in `sys.modules`.
So this module imports what it needs inside functions, and defines no dataclass.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

if TYPE_CHECKING:
    from parallel.cli.sweep import Job

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


class TorchrunLauncher(Launcher):
    """Launcher with the fields of `parallel.cli.sweep.Torchrun` as arguments.

    Raises `ValueError` for an invalid one.
    """

    def __init__(self, **settings: Any) -> None:
        from parallel.cli.sweep import Torchrun

        self.torchrun = Torchrun(**settings)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store the context. Called first by Hydra. The task function is unused: jobs are
        processes."""
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs.

        Raises `ValueError` before the first job if any job is invalid, and `SweepFailed` at the end
        if a job failed.
        """
        from parallel.cli.sweep import run_jobs

        setup_globals()
        jobs = [
            self._check(list(overrides), index)
            for index, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        run_jobs(jobs, self.torchrun)
        return [
            JobReturn(overrides=job.overrides, working_dir=str(job.run_dir), status=JobStatus.COMPLETED)
            for job in jobs
        ]

    def _check(self, overrides: list[str], index: int) -> Job:
        """Compose and validate a job in the same way as its processes will."""
        from parallel.cli.application import fit_world
        from parallel.cli.compose import quote, refuse_targets, to_config
        from parallel.cli.sweep import Job
        from parallel.config import require

        node = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(node):
            node.hydra.job.id, node.hydra.job.num = str(index), index
        HydraConfig.instance().set_config(node)
        refuse_targets(node)
        config = to_config(node)
        nnodes = self.torchrun.nnodes
        workers = config.worker_count()
        if config.strategy.fixed_workers is None:
            require(
                config.workers is not None,
                "workers",
                config.workers,
                f"must be set for strategy={config.strategy.name} with hydra/launcher=torchrun, as in workers=2",
            )
            require(
                workers < nnodes or workers % nnodes == 0,
                "workers",
                workers,
                f"must be a multiple of hydra.launcher.nnodes={nnodes}",
            )
        sweep_dir = Path(node.hydra.sweep.dir).absolute()
        run_dir = sweep_dir / node.hydra.sweep.subdir
        forwarded = [
            str(override)
            for override in self.config.hydra.overrides.hydra
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
