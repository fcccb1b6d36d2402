"""Hydra launcher for `-m … hydra/launcher=torchrun`: composes every job; `parallel.cli.run_sweep`
runs them.

Hydra imports every plugin at the start of any application, before the module is in `sys.modules`.
So this module imports what it needs inside functions, and defines no dataclass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from parallel.cli.sweep import Job


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

        Raises `ValueError` before the first job if any job is invalid or rejected, and `SweepFailed` at the end
        if a job failed.
        """
        from parallel.cli.repeats import repeated

        setup_globals()
        jobs = repeated(self._jobs(job_overrides, initial_job_idx))
        self._run(jobs)
        return [
            JobReturn(overrides=job.overrides, working_dir=str(job.run_dir), status=JobStatus.COMPLETED)
            for job in jobs
        ]

    def _run(self, jobs: Sequence[Job]) -> None:
        from parallel.cli.run_sweep import run_jobs

        run_jobs(jobs, self.torchrun)

    def _jobs(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Job]:
        """Return the jobs, the first of which has the number `first`."""
        return [self._check(list(overrides), index) for index, overrides in enumerate(job_overrides, first)]

    def _check(self, overrides: list[str], index: int, suffix: str = "") -> Job:
        """Compose and validate a job in the same way as its processes will.

        `suffix`: end of its folder's name.
        """
        from parallel.cli.sweep_jobs import compose_job
        from parallel.config import require

        job = compose_job(self.hydra_context.config_loader, self.config, overrides, index, suffix)
        nnodes = self.torchrun.nnodes
        if job.config.strategy.fixed_workers is None:
            require(
                job.workers < nnodes or job.workers % nnodes == 0,
                "workers",
                job.workers,
                f"must be a multiple of hydra.launcher.nnodes={nnodes}",
            )
        return job
