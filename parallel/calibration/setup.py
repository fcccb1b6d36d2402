"""The parts of a calibration that all measurements share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from parallel.calibration.options import CalibrationOptions
from parallel.calibration.progress import PhaseProgress
from parallel.cluster import Cluster
from parallel.config import Config
from parallel.data import DataSet
from parallel.graph import Graph
from parallel.results.hosts import Host
from parallel.runtime.communication.world import World

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Setup:
    """One calibration as one worker sees it. All workers measure at the same time."""

    config: Config
    options: CalibrationOptions
    world: World
    data: DataSet
    graph: Graph
    known: Cluster | None
    """Earlier calibration of this machine, which is extended."""
    progress: PhaseProgress
    speeds: tuple[float, ...] = ()
    """Speed of each worker, as in `Cluster`."""

    @property
    def precision(self) -> str:
        return self.config.trainer.precision

    @property
    def batch_size(self) -> int:
        """Global batch size."""
        return self.config.trainer.batch_size

    @property
    def local_batch(self) -> int:
        """Batch size of a worker in data parallel training."""
        return max(1, self.batch_size // self.world.size)

    @property
    def nodes(self) -> int:
        return len(self.world.hosts)

    @property
    def workers_per_node(self) -> int:
        """Number of workers of a node; of the largest, if nodes differ."""
        return max(self.world.node_workers)

    @property
    def place(self) -> int:
        """Place of this worker among those of its node, from 0."""
        return self.world.rank - self.world.host.workers[0]

    @cached_property
    def computing_per_node(self) -> int:
        """Number of workers of a node that have their own cores: they compute in
        measurements. If nodes differ, that of the largest, and of those the one with the fewest
        cores."""
        most = self.workers_per_node
        return min(self._computing_on(host) for host in self.world.hosts if len(host.workers) == most)

    def _computing_on(self, host: Host) -> int:
        here = len(host.workers)
        cpu = self.world.device.type == "cpu"
        cores = (host.cores or 1) // self.config.cluster.threads if cpu else here
        return max(1, min(here, cores))

    @property
    def computes(self) -> bool:
        """Whether this worker computes while ops are measured."""
        return self.place < self._computing_on(self.world.host)

    def is_reference(self, worker: int) -> bool:
        """Whether the times of a worker are those of the table: its speed is 1."""
        return not self.speeds or self.speeds[worker] == 1

    def of_references(self, every: Sequence[T]) -> list[T]:
        """Return the values of the reference workers among those of all workers."""
        return [value for worker, value in enumerate(every) if self.is_reference(worker)]

    def slowest(self, seconds: float) -> float:
        """Return the maximum over all workers, so that all of them decide alike."""
        return max(self.world.gather(seconds))

    def pooled(self, own: Mapping[K, list[float]]) -> dict[K, list[float]]:
        """Return the samples of all reference workers by key; keys are texts and numbers, or tuples of them."""
        pooled: dict[K, list[float]] = {}
        for samples in self.of_references(self.world.gather(dict(own))):
            for key, seconds in samples.items():
                pooled.setdefault(key, []).extend(seconds)
        return pooled
