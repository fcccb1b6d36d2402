"""Hydra launcher for `-m … hydra/launcher=emulated`: each job in a new emulated cluster.

As in `hydra_plugins.torchrun_launcher`, imports are inside functions.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra_plugins.torchrun_launcher.launcher import TorchrunLauncher

if TYPE_CHECKING:
    from parallel.cli.sweep import Job
    from parallel.emulation.description import Description


class EmulatedLauncher(TorchrunLauncher):
    """Launcher with the clusters as arguments, each a value or a list of values to sweep over, and
    the fields of `parallel.cli.sweep.Torchrun` that do not concern nodes.

    Raises `ValueError` for an invalid one.
    """

    def __init__(self, *, hosts: Any, rate: Any, delay: Any, cores: Any, **settings: Any) -> None:
        from parallel.emulation.cluster import require_delay, require_system
        from parallel.emulation.description import uniform

        super().__init__(**settings)
        require_system()
        axes = [
            values if isinstance(values, Sequence) and not isinstance(values, str) else [values]
            for values in (hosts, rate, delay, cores)
        ]
        self._clusters = [uniform("hydra.launcher.", *values) for values in itertools.product(*axes)]
        for value in axes[2]:
            require_delay("hydra.launcher.delay", value)

    def _jobs(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Job]:
        jobs: list[Job] = []
        for cluster in self._clusters:
            for overrides in job_overrides:
                job = self._check(list(overrides), first + len(jobs), f",{cluster.words}")
                jobs.append(self._place(job, cluster))
        return jobs

    @staticmethod
    def _place(job: Job, cluster: Description) -> Job:
        from parallel.config import require

        hosts = len(cluster.hosts)
        require(
            job.workers < hosts or job.workers % hosts == 0,
            "workers",
            job.workers,
            f"must be a multiple of hydra.launcher.hosts={hosts}",
        )
        return dataclasses.replace(job, cluster=cluster)
