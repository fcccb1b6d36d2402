"""Process groups of sets of workers, for collectives among them.

torch makes a group only if all workers of the run make it, also those outside it, and all groups in the
same order. So a runtime makes the groups of its program at once, in the order of the buckets, before its
first step; sets that several programs of a run have in common are made once. With NCCL a new group splits
the communicator of all workers, since that one is bound to a device: it connects then, not in the first step.

The groups are apart from the group of all workers, which carries the exchanges: NCCL runs the operations of
a communicator one after the other, and an exchange on which computing waits would stand behind a sum on
which nothing waits yet. Communicators that are at work at the same time deadlock unless all workers start
their operations in one global order (NCCL user guide, "Using multiple NCCL communicators concurrently").
A program is such an order: steps of workers are projections of it, and sums of a backward start in the order
of its buckets (`execution.parameters`).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

import torch.distributed as dist

WorkerSet = tuple[int, ...]
"""Workers in ascending order."""


class Groups:
    """The groups of a run, by their workers."""

    def __init__(self, timeout: timedelta | None = None) -> None:
        """Operations are limited to `timeout`; None: torch's default."""
        self._groups: dict[WorkerSet, dist.ProcessGroup] = {}
        self._timeout = timeout

    def missing(self, sets: Iterable[WorkerSet]) -> list[WorkerSet]:
        """Return the sets without a group, each once, in their order."""
        return [workers for workers in dict.fromkeys(sets) if workers not in self._groups]

    def make(self, workers: WorkerSet) -> None:
        """Make a group. All workers of the run call this, for the same sets in the same order."""
        group = dist.new_group(list(workers), timeout=self._timeout)
        if group is None:
            raise RuntimeError(f"torch made no group of workers {workers}")
        self._groups[workers] = group

    def __getitem__(self, workers: WorkerSet) -> dist.ProcessGroup:
        return self._groups[workers]
