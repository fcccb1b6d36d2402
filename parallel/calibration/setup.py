"""The parts of a calibration that all measurements share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from parallel.calibration.options import CalibrationOptions
from parallel.calibration.progress import PhaseProgress
from parallel.cluster import Cluster
from parallel.config import Config
from parallel.data import DataSet
from parallel.graph import Graph
from parallel.results.environment import usable_cpus
from parallel.runtime.communication.world import World

K = TypeVar("K")


@dataclass(frozen=True, eq=False)
class Setup:
    """One calibration as one worker sees it. All workers measure at the same time."""

    config: Config
    options: CalibrationOptions
    world: World
    nodes: int
    """Number of nodes on which torchrun started workers."""
    data: DataSet
    graph: Graph
    known: Cluster | None
    """Earlier calibration of this machine, which is extended."""
    progress: PhaseProgress

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
    def workers_per_node(self) -> int:
        return self.world.size // self.nodes

    @cached_property
    def computing_per_node(self) -> int:
        """Number of workers of a node that have their own cores: they compute in
        measurements."""
        cpu = self.world.device.type == "cpu"
        cores = (usable_cpus() or 1) // self.config.cluster.threads if cpu else self.workers_per_node
        return max(1, min(self.workers_per_node, cores))

    @property
    def computes(self) -> bool:
        """Whether this worker computes while ops are measured."""
        return self.world.rank % self.workers_per_node < self.computing_per_node

    def slowest(self, seconds: float) -> float:
        """Return the maximum over all workers, so that all of them decide alike."""
        return max(self.world.gather(seconds))

    def pooled(self, own: Mapping[K, list[float]]) -> dict[K, list[float]]:
        """Return the samples of all workers by key."""
        pooled: dict[K, list[float]] = {}
        for samples in self.world.gather(dict(own)):
            for key, seconds in samples.items():
                pooled.setdefault(key, []).extend(seconds)
        return pooled
