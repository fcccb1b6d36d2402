"""What a cluster is to the simulator and the search: how long computing takes, and how long messages take.

    Link.seconds(B) = latency + B / bandwidth(B)          bandwidth: a power law between the given points (log-log)
    Cluster.data_s  = images · data_s_per_image           of the worker with most images, or of all of a node
    Cluster.step_s  = timeline + overhead + data_s, or, where loading overlaps, the larger of the two

Workers are numbered node by node. Units are seconds, bytes and bytes per second throughout; the files that clusters
are read from (`parallel.cluster.files`) name a unit with every number.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from parallel.config import require
from parallel.graph.ops import Op, Part


class Compute(Protocol):
    """Seconds that one worker computes, while as many others of its node do as have cores of their own. `precision` is
    the configuration's."""

    def forward_s(self, op: Op, part: Part, precision: str) -> float:
        """Of the forward pass of a part."""
        ...

    def backward_s(self, op: Op, part: Part, precision: str, input_gradient: bool) -> float:
        """Of its backward pass; without `input_gradient` only that of the parameters (no weights come before)."""
        ...

    def update_s(self, parameters: int, precision: str) -> float:
        """Of one step of SGD on so many parameters: those of the worker's shard."""
        ...

    def add_s(self, elements: int, precision: str) -> float:
        """Of adding so many received numbers to what is there: gradients' shards, overlaps of an exchange."""
        ...

    def copy_s(self, elements: int, precision: str) -> float:
        """Of copying so many activations: packing what an exchange sends, putting in place what it brings."""
        ...

    def precisions(self) -> tuple[str, ...]:
        """Those that it has times for."""
        ...


@dataclass(frozen=True)
class Link:
    """One level of the network.

    What its bandwidth is shared by says what the load of an exchange is: `shared`, the bytes that all workers of the
    node send over it (between nodes: that the node sends or receives, whichever is more); otherwise the most that one
    worker sends or receives.
    """

    latency_s: float
    """Of an exchange or sync."""
    bandwidth: tuple[tuple[float, float], ...]
    """Points (bytes of the load, bytes/s), rising in bytes; beyond the ends the bandwidth stays as it is there."""
    shared: bool = False

    def __post_init__(self) -> None:
        _require_time("latency_s", self.latency_s)
        require(len(self.bandwidth) > 0, "bandwidth", self.bandwidth, "must have a point (bytes, bytes/s)")
        for nbytes, speed in self.bandwidth:
            require(0 < nbytes < math.inf, "bandwidth", nbytes, "bytes must be positive and finite")
            require(0 < speed < math.inf, "bandwidth", speed, "bytes/s must be positive and finite")
        for (a, speed_a), (b, speed_b) in itertools.pairwise(self.bandwidth):
            require(a < b, "bandwidth", f"{a:g}, {b:g}", "bytes of its points must rise")
            require(a / speed_a <= b / speed_b * (1 + 1e-9), "bandwidth", f"{speed_b:g} bytes/s at {b:g} bytes",
                    f"would make a message faster than a smaller one ({speed_a:g} bytes/s at {a:g} bytes)")

    @cached_property
    def _sizes(self) -> list[float]:
        return [nbytes for nbytes, _ in self.bandwidth]

    def speed(self, nbytes: float) -> float:
        """Bytes per second at this load."""
        points = self.bandwidth
        i = bisect.bisect_right(self._sizes, nbytes)
        if i == 0:
            return points[0][1]
        if i == len(points):
            return points[-1][1]
        (a, speed_a), (b, speed_b) = points[i - 1], points[i]
        return speed_a * (speed_b / speed_a) ** (math.log(nbytes / a) / math.log(b / a))

    def seconds(self, nbytes: float) -> float:
        """Of an exchange with this load; 0 where nothing moves. Never falls as the bytes rise."""
        return 0.0 if nbytes <= 0 else self.latency_s + nbytes / self.speed(nbytes)


@dataclass(frozen=True)
class Cluster:
    """The numbers of the hardware. Made by hand, or by `parallel.calibrate`."""

    name: str
    nodes: int
    workers_per_node: int
    inside: Link
    """Between workers of a node."""
    between: Link | None
    """Between nodes; None: there is one node, and no more can be had."""
    memory_bytes: int
    """Of a worker."""
    compute: Compute = field(hash=False)
    step_overhead_s: float = 0.0
    """Of a step, besides its parts."""
    overlap_slowdown: float = 0.0
    """From 0 to 1: how much of the time of messages under way is taken from the computing of their workers."""
    core_contention: tuple[float, ...] = ()
    """Factors by which compute times grow while 1, 2, … workers of a node compute, where workers share cores. Empty:
    every worker has cores of its own, and the factor is always 1."""
    shared_memory: bool = False
    """Workers of a node hand tensors over in memory that both see, so that no piece is packed, and keep weights that
    they all hold in memory of all of them, so that an updated shard is announced, not sent (`runtime.shared_memory`).
    """
    data_s_per_image: float = 0.0
    """Of reading and preparing an image."""
    data_shared: bool = False
    """All workers of a node load one after the other: a few processors feed all GPUs. Otherwise each loads its own."""
    data_overlaps: bool = False
    """Loading goes on beside the step: processors load while GPUs compute. Otherwise its time adds up."""
    machine: Mapping[str, str] = field(default_factory=dict, hash=False)
    """What was calibrated (processor, cores, threads, versions …); empty for a cluster that was written by hand."""
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Where each number comes from, by its name in the file."""

    def __post_init__(self) -> None:
        for name in ("nodes", "workers_per_node", "memory_bytes"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        require(self.nodes == 1 or self.between is not None, "between", None,
                f"must be given for a cluster of nodes={self.nodes}")
        for name in ("step_overhead_s", "data_s_per_image"):
            _require_time(name, getattr(self, name))
        require(0 <= self.overlap_slowdown <= 1, "overlap_slowdown", self.overlap_slowdown, "must be from 0 to 1")
        require(len(self.core_contention) in (0, self.workers_per_node), "core_contention",
                self.core_contention, f"must have workers_per_node={self.workers_per_node} values")
        for few, more in itertools.pairwise((0.0, *self.core_contention)):
            require(0 < more >= few, "core_contention", self.core_contention, "must be positive shares that never fall")

    @property
    def workers(self) -> int:
        return self.nodes * self.workers_per_node

    def node_of(self, worker: int) -> int:
        """The node that a worker is on."""
        return worker // self.workers_per_node

    def contention_factor(self, computing: float) -> float:
        """Return the factor while `computing` workers of a node compute, interpolated linearly between integers."""
        if not self.core_contention:
            return 1.0
        i, most = int(computing), len(self.core_contention)
        low, high = (self.core_contention[min(max(j, 1), most) - 1] for j in (i, i + 1))
        return low + (high - low) * (computing - i)

    @cached_property
    def fingerprint(self) -> str:
        """Eight hexadecimal digits: of the machine that was calibrated, else of everything that was written."""
        known = sorted(self.machine.items()) if self.machine else self
        return hashlib.sha256(repr(known).encode()).hexdigest()[:8]

    def data_s(self, images: Sequence[int]) -> float:
        """Seconds of loading for a step in which worker i loads `images[i]` images."""
        if not self.data_shared:
            return max(images, default=0) * self.data_s_per_image
        by_node: dict[int, int] = {}
        for worker, count in enumerate(images):
            by_node[self.node_of(worker)] = by_node.get(self.node_of(worker), 0) + count
        return max(by_node.values(), default=0) * self.data_s_per_image

    def step_s(self, timeline_s: float, images: Sequence[int]) -> float:
        """A step whose computing and messages take `timeline_s`, with its overhead and the loading of its images."""
        step, data = timeline_s + self.step_overhead_s, self.data_s(images)
        return max(step, data) if self.data_overlaps else step + data

    def resized(self, workers: int) -> Cluster:
        """The cluster with as many nodes as `workers` need; `ValueError` if it cannot grow."""
        require(workers >= 1, "workers", workers, "must be at least 1")
        nodes = max(1, math.ceil(workers / self.workers_per_node))
        if nodes == self.nodes or (nodes < self.nodes and self.machine):
            return self
        require(nodes == 1 or self.between is not None, "workers", workers,
                f"is more than the {self.workers} of cluster {self.name}, which has no link `between` nodes to add any")
        require(nodes <= self.nodes or not self.machine, "workers", workers,
                f"is more than the {self.workers} that cluster {self.name} was calibrated with")
        return dataclasses.replace(self, nodes=nodes)


def _require_time(name: str, value: float) -> None:
    require(0 <= value < math.inf, name, value, "must be seconds, finite and not negative")
