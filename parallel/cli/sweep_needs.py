"""Whether this machine has the GPUs and the data for the jobs of a sweep, before the first of them runs.

Only for jobs of torchrun on this machine: other launchers know their own machines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from parallel.cli.sweep import Job, Torchrun, spans_nodes
from parallel.config import ImageFilesConfig
from parallel.data import ON_DISK
from parallel.data.layout import find_root
from parallel.runtime.communication.device import Machine, device_of


def refuse_without_gpus(jobs: Sequence[Job], torchrun: Torchrun, machine: Machine) -> None:
    """Raise `ValueError` if workers of a job would find no device on `machine`, as they would themselves.

    Jobs in emulated clusters are passed over.
    """

    def check(job: Job) -> None:
        if job.cluster is None:
            local = job.workers // torchrun.nnodes if spans_nodes(job, torchrun) else job.workers
            environment = {"WORLD_SIZE": str(job.workers), "LOCAL_WORLD_SIZE": str(local)}
            device_of(job.config.cluster, machine, environment)

    _refuse(jobs, check)


def refuse_without_data(jobs: Sequence[Job]) -> None:
    """Raise `ValueError` if the data set of a job is not in its folder. The images are not read."""

    def check(job: Job) -> None:
        if isinstance(job.config.data, ImageFilesConfig):
            find_root(job.config.data.name, ON_DISK, job.config.data.root)

    _refuse(jobs, check)


def _refuse(jobs: Sequence[Job], check: Callable[[Job], None]) -> None:
    """Raise `ValueError` if `check` raises it for a job: name the first one, and count the others."""
    refused: list[tuple[Job, str]] = []
    for job in jobs:
        try:
            check(job)
        except ValueError as error:
            refused.append((job, str(error)))
    if refused:
        (first, reason), *others = refused
        more = f" (and {len(others)} more of the sweep's {len(jobs)} jobs)" if others else ""
        raise ValueError(f"{first.label}{more} cannot run here: {reason}")
