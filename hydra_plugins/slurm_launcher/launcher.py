"""Hydra launcher for `-m … hydra/launcher=submitit_slurm`: composes every job;
`parallel.cli.slurm_sweep` submits them.

As in `hydra_plugins.torchrun_launcher`, imports are inside functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from hydra_plugins.torchrun_launcher.launcher import TorchrunLauncher

if TYPE_CHECKING:
    from parallel.cli.sweep import Job


class SlurmLauncher(TorchrunLauncher):
    """Launcher with the fields of `parallel.cli.slurm_job.Slurm` as arguments.

    Raises `ValueError` for an invalid one.
    """

    def __init__(self, **settings: Any) -> None:
        from parallel.cli.slurm_job import Slurm

        plain: dict[str, Any] = {
            name: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for name, value in settings.items()
        }
        self.slurm = Slurm(**plain)

    def _check(self, overrides: list[str], index: int, suffix: str = "") -> Job:
        from parallel.cli.sweep_jobs import compose_job

        return compose_job(self.hydra_context.config_loader, self.config, overrides, index, suffix)

    def _run(self, jobs: Sequence[Job]) -> None:
        from parallel.cli.slurm_sweep import run_jobs

        run_jobs(jobs, self.slurm)
