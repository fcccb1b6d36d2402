"""Clusters: the times of computing, messages and loading for the simulator and the search.

    Link.seconds(B) = latency + B / bandwidth(B)    bandwidth: a power law between given points
    Cluster.data_s  = images · data_s_per_image     images of the busiest worker, or of a node
    Cluster.step_s  = timeline + overhead + data_s  or, if loading overlaps the step, the larger of
                                                    timeline + overhead and data_s

Workers are numbered node by node; nodes may have different numbers of workers, and workers different
speeds. All values are in seconds, bytes and bytes per second; cluster
files (`parallel.cluster.files`) give a unit with every number.
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

from parallel.cluster.units import MOST_RATE
from parallel.config import printable, require, require_number
from parallel.config.checks import MOST_BYTES, MOST_SECONDS, MOST_WORKERS
from parallel.graph.ops import Op, Part

LEAST_BANDWIDTH = 1e-3
"""Bytes per second; times stay finite."""
LEAST_SPEED = 1e-3
"""Speed of a worker relative to the times of `compute`; the largest is one over it. Times stay finite."""


class Compute(Protocol):
    """Computing times of one worker in seconds; other workers use other cores.

    `precision` is that of the configuration: fp32, tf32, bf16 or fp64.
    """

    def forward_s(self, op: Op, part: Part, precision: str) -> float:
        """Return the time of the forward pass of a part."""
        ...

    def backward_s(self, op: Op, part: Part, precision: str, input_gradient: bool) -> float:
        """Return the time of the backward pass of a part.

        Without `input_gradient`, only the gradient of the parameters is computed.
        """
        ...

    def update_s(self, parameters: int, precision: str) -> float:
        """Return the time of an SGD step on a shard of this number of parameters."""
        ...

    def add_s(self, elements: int, precision: str) -> float:
        """Return the time to add received elements: gradient shards, overlaps of an exchange."""
        ...

    def copy_s(self, elements: int, precision: str) -> float:
        """Return the time to copy activations: packing and unpacking of an exchange."""
        ...

    def precisions(self) -> tuple[str, ...]:
        """Return the precisions that have times."""
        ...


@dataclass(frozen=True)
class Link:
    """One level of the network: inside a node, or between nodes.

    The load of an exchange on the link, in bytes, depends on `shared`. Not shared: the maximum over
    the workers of what one sends or receives. Shared: the maximum over the nodes of what all
    workers of a node send (between nodes: of what the node sends or receives, whichever is larger).
    """

    latency_s: float
    """Latency of an exchange or gradient sum."""
    bandwidth: tuple[tuple[float, float], ...]
    """Points (load in bytes, bytes/s), by increasing load; constant beyond the ends."""
    shared: bool = False
    """Whether the workers of a node share the bandwidth."""

    def __post_init__(self) -> None:
        require_number("latency_s", self.latency_s, 0, MOST_SECONDS)
        require(len(self.bandwidth) > 0, "bandwidth", self.bandwidth, "must have a point (bytes, bytes/s)")
        for nbytes, speed in self.bandwidth:
            require(1 <= nbytes <= MOST_RATE, "bandwidth", nbytes, f"bytes must be from 1 to {MOST_RATE:g}")
            require(
                LEAST_BANDWIDTH <= speed <= MOST_RATE,
                "bandwidth",
                speed,
                f"bytes/s must be from {LEAST_BANDWIDTH:g} to {MOST_RATE:g}",
            )
        for (a, speed_a), (b, speed_b) in itertools.pairwise(self.bandwidth):
            require(a < b, "bandwidth", f"{a:g}, {b:g}", "bytes of its points must rise")
            require(
                a / speed_a <= b / speed_b * (1 + 1e-9),
                "bandwidth",
                f"{speed_b:g} bytes/s at {b:g} bytes",
                f"would make a message faster than a smaller one ({speed_a:g} bytes/s at {a:g} bytes)",
            )

    @cached_property
    def _sizes(self) -> list[float]:
        return [nbytes for nbytes, _ in self.bandwidth]

    def speed(self, nbytes: float) -> float:
        """Return the bandwidth in bytes per second at a load."""
        points = self.bandwidth
        i = bisect.bisect_right(self._sizes, nbytes)
        if i == 0:
            return points[0][1]
        if i == len(points):
            return points[-1][1]
        (a, speed_a), (b, speed_b) = points[i - 1], points[i]
        return speed_a * (speed_b / speed_a) ** (math.log(nbytes / a) / math.log(b / a))

    def seconds(self, nbytes: float) -> float:
        """Return the time of an exchange with this load; it does not decrease with the load."""
        return 0.0 if nbytes <= 0 else self.latency_s + nbytes / self.speed(nbytes)


@dataclass(frozen=True)
class AllReduce:
    """The backend's own all-reduce (gloo, NCCL) among all workers, which torch's DDP uses."""

    link: Link
    """Its time by the bytes of the summed tensor; `shared` has no meaning."""
    overlap_slowdown: float
    """Share of its time, from 0 to 1, by which it delays the computing of its workers."""

    def __post_init__(self) -> None:
        require(
            0 <= self.overlap_slowdown <= 1,
            "all_reduce.overlap_slowdown",
            self.overlap_slowdown,
            "must be from 0 to 1",
        )


@dataclass(frozen=True)
class Cluster:
    """A cluster, written by hand or made by `parallel.calibrate`."""

    name: str
    nodes: int
    workers_per_node: int
    inside: Link
    """Link between workers of a node."""
    between: Link | None
    """Link between nodes; None: the cluster is one node and cannot grow."""
    memory_bytes: int
    """Memory of a worker."""
    compute: Compute = field(hash=False)
    step_overhead_s: float = 0.0
    """Time of a step that its parts do not explain."""
    overlap_slowdown: float = 0.0
    """Share of a message's time, from 0 to 1, by which it delays the computing of its workers."""
    core_contention: tuple[float, ...] = ()
    """Factors by which compute times grow while 1, 2, … workers of a node compute, if workers share
    cores. Empty: every worker has its own cores, and the factor is always 1."""
    node_workers: tuple[int, ...] = ()
    """Workers of each node, if nodes differ; workers_per_node is then the largest. Empty: every node
    has workers_per_node."""
    speeds: tuple[float, ...] = ()
    """Speed of each worker: its computing and loading times are those of `compute` and
    `data_s_per_image`, divided by it. Empty: all 1."""
    shared_memory: bool = False
    """Whether workers of a node pass tensors in shared memory. Pieces are then not packed, and
    updated shards of weights that all of them hold are not sent, since the weights are in shared
    memory, too.
    """
    collectives: bool = field(default=False, repr=False)
    """Whether gradients are summed by the backend's collectives, as on GPUs, where it is NCCL. No key of
    cluster files: `open_cluster` knows the device."""
    all_reduce: AllReduce | None = field(default=None, repr=False)
    """None: not measured; predictions of DDP then compute it from the links, as a ring."""
    data_s_per_image: float = 0.0
    """Time to read and prepare an image."""
    data_shared: bool = False
    """Whether the workers of a node load one after the other: few processors, many GPUs."""
    data_overlaps: bool = False
    """Whether loading overlaps the step, as when processors load while GPUs compute."""
    machine: Mapping[str, str] = field(default_factory=dict, hash=False)
    """The calibrated machine (processor, cores, threads …); empty if written by hand."""
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Source of each number, by its name in the cluster file."""

    def __post_init__(self) -> None:
        for text in (self.name, *self.machine, *self.machine.values()):
            require(printable(text) == text, "name or machine", text, "must not have control characters")
        for name in ("nodes", "workers_per_node"):
            require_number(name, getattr(self, name), 1, MOST_WORKERS)
        require_number("memory_bytes", self.memory_bytes, 1, MOST_BYTES)
        require(
            self.nodes == 1 or self.between is not None,
            "between",
            None,
            f"must be given for a cluster of nodes={self.nodes}",
        )
        for name in ("step_overhead_s", "data_s_per_image"):
            require_number(name, getattr(self, name), 0, MOST_SECONDS)
        require(
            0 <= self.overlap_slowdown <= 1, "overlap_slowdown", self.overlap_slowdown, "must be from 0 to 1"
        )
        require(
            len(self.core_contention) in (0, self.workers_per_node),
            "core_contention",
            self.core_contention,
            f"must have workers_per_node={self.workers_per_node} values",
        )
        self._check_hosts()
        for few, more in itertools.pairwise((0.0, *self.core_contention)):
            require(
                0 < more >= few and more <= 1e6,
                "core_contention",
                self.core_contention,
                "must be positive shares that never fall, of at most 1e8 %",
            )

    def _check_hosts(self) -> None:
        if self.node_workers:
            require(
                len(self.node_workers) == self.nodes,
                "node_workers",
                self.node_workers,
                f"must have nodes={self.nodes} values",
            )
            for count in self.node_workers:
                require_number("node_workers", count, 1, MOST_WORKERS)
            require(
                max(self.node_workers) == self.workers_per_node,
                "workers_per_node",
                self.workers_per_node,
                f"must be the largest of node_workers={self.node_workers}",
            )
        require(
            len(self.speeds) in (0, self.workers),
            "speeds",
            self.speeds,
            f"must have a value for each of the {self.workers} workers",
        )
        for speed in self.speeds:
            require(
                LEAST_SPEED <= speed <= 1 / LEAST_SPEED, "speeds", speed, "must be from 0.1 % to 100,000 %"
            )

    @cached_property
    def node_sizes(self) -> tuple[int, ...]:
        """Workers of each node."""
        return self.node_workers or (self.workers_per_node,) * self.nodes

    @cached_property
    def workers(self) -> int:
        """Number of workers."""
        return sum(self.node_sizes)

    @cached_property
    def _first_workers(self) -> list[int]:
        return list(itertools.accumulate(self.node_sizes, initial=0))

    @property
    def even(self) -> bool:
        """Whether all nodes have as many workers, and all workers the same speed."""
        return len(set(self.node_sizes)) == 1 and len(set(self.speeds)) <= 1

    def node_of(self, worker: int) -> int:
        """Return the node of a worker. Workers beyond the cluster's have no node: `ValueError`."""
        require(worker < self.workers, "worker", worker, f"is outside the cluster's {self.workers} workers")
        return bisect.bisect_right(self._first_workers, worker) - 1

    @cached_property
    def hosts(self) -> tuple[int, ...]:
        """Node of each worker."""
        return tuple(node for node, count in enumerate(self.node_sizes) for _ in range(count))

    def workers_of(self, node: int) -> range:
        """Return the workers of a node."""
        first = self._first_workers[node]
        return range(first, first + self.node_sizes[node])

    def on_other_nodes(self, some: Sequence[int], others: Sequence[int]) -> bool:
        """Return whether no node has workers of both sets."""
        return {self.hosts[worker] for worker in some}.isdisjoint(self.hosts[worker] for worker in others)

    def speed_of(self, worker: int) -> float:
        """Return the speed of a worker, relative to the times of `compute`."""
        return self.speeds[worker] if self.speeds else 1.0

    def contention_factor(self, computing: float) -> float:
        """Return the factor while `computing` workers of a node compute, interpolated linearly."""
        if not self.core_contention:
            return 1.0
        i = int(computing)
        most = len(self.core_contention)
        low, high = (self.core_contention[min(max(j, 1), most) - 1] for j in (i, i + 1))
        return low + (high - low) * (computing - i)

    @cached_property
    def fingerprint(self) -> str:
        """Eight hexadecimal digits: of the calibrated machine, or of all contents."""
        known = sorted(self.machine.items()) if self.machine else self
        collectives = " collectives" if self.collectives else ""
        return hashlib.sha256(f"{known!r}{collectives}".encode()).hexdigest()[:8]

    @cached_property
    def digest(self) -> str:
        """Eight hexadecimal digits of all contents, which differ between calibrations of a machine."""
        contents = [getattr(self, each.name) for each in dataclasses.fields(self)]
        return hashlib.sha256(repr(contents).encode()).hexdigest()[:8]

    def data_s(self, images: Sequence[int]) -> float:
        """Return the loading time of a step in which worker i loads `images[i]` images."""
        seconds = [
            count * self.data_s_per_image / self.speed_of(worker) for worker, count in enumerate(images)
        ]
        if not self.data_shared:
            return max(seconds, default=0.0)
        by_node: dict[int, float] = {}
        for worker, taken in enumerate(seconds):
            by_node[self.node_of(worker)] = by_node.get(self.node_of(worker), 0.0) + taken
        return max(by_node.values(), default=0.0)

    def step_s(self, timeline_s: float, images: Sequence[int]) -> float:
        """Return the time of a step with this timeline, with overhead and loading."""
        step = timeline_s + self.step_overhead_s
        data = self.data_s(images)
        return max(step, data) if self.data_overlaps else step + data

    def resized(self, workers: int) -> Cluster:
        """Return the cluster with enough nodes for `workers`; `ValueError` if it cannot grow."""
        require(workers >= 1, "workers", workers, "must be at least 1")
        if workers <= self.workers and (self.node_workers or self.speeds or self.machine):
            return self
        require(
            not self.node_workers and not self.speeds,
            "workers",
            workers,
            f"is more than the {self.workers} of cluster {self.name}, which cannot grow because its "
            "nodes or workers differ",
        )
        nodes = max(1, math.ceil(workers / self.workers_per_node))
        if nodes == self.nodes:
            return self
        require(
            nodes == 1 or self.between is not None,
            "workers",
            workers,
            f"is more than the {self.workers} of cluster {self.name}, which has no link `between` "
            "nodes to add any",
        )
        require(
            nodes <= self.nodes or not self.machine,
            "workers",
            workers,
            f"is more than the {self.workers} that cluster {self.name} was calibrated with",
        )
        return dataclasses.replace(self, nodes=nodes)
