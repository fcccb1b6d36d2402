"""Whether the GPUs of a machine are enough for the jobs of a sweep, before the first of them runs.

Only for jobs of torchrun on this machine: other launchers know their own machines.
"""

from __future__ import annotations

from collections.abc import Sequence

from parallel.cli.sweep import Job, Torchrun, spans_nodes
from parallel.runtime.communication.device import Machine, device_of


def refuse_without_gpus(jobs: Sequence[Job], torchrun: Torchrun, machine: Machine) -> None:
    """Raise `ValueError` if workers of a job would find no device on `machine`, as they would themselves.

    It names the first such job, its workers and the GPUs, and counts the others. Jobs in emulated clusters
    are passed over.
    """
    refused: list[tuple[Job, str]] = []
    for job in jobs:
        if job.cluster is not None:
            continue
        local = job.workers // torchrun.nnodes if spans_nodes(job, torchrun) else job.workers
        environment = {"WORLD_SIZE": str(job.workers), "LOCAL_WORLD_SIZE": str(local)}
        try:
            device_of(job.config.cluster, machine, environment)
        except ValueError as error:
            refused.append((job, str(error)))
    if refused:
        (first, reason), *others = refused
        more = f" (and {len(others)} more of the sweep's {len(jobs)} jobs)" if others else ""
        raise ValueError(f"{first.label}{more} cannot run here: {reason}")
