"""Clusters of round numbers, for costs and timelines that can be checked by hand."""

from __future__ import annotations

from dataclasses import dataclass, field

from parallel.cluster import Cluster, Link
from parallel.config import PRECISIONS
from parallel.graph.ops import Op, Part


@dataclass(frozen=True)
class Rates:
    """Compute times proportional to sizes: seconds per element of the output, per parameter …"""

    per_element_s: float = 1e-6
    """Forward time; backward takes twice as long, or the same without the input's gradient."""
    per_update_s: float = 1e-7
    per_add_s: float = 0.0
    per_copy_s: float = 0.0
    of_op: dict[str, float] = field(default_factory=dict, hash=False)
    """Forward seconds of a whole sample, by op: instead of per_element_s."""

    def forward_s(self, op: Op, part: Part, precision: str) -> float:
        if op.name in self.of_op:
            return self.of_op[op.name] * part.box.shape[0]
        return self.per_element_s * part.box.volume

    def backward_s(self, op: Op, part: Part, precision: str, input_gradient: bool) -> float:
        return (2 if input_gradient else 1) * self.forward_s(op, part, precision)

    def update_s(self, parameters: int, precision: str) -> float:
        return self.per_update_s * parameters

    def add_s(self, elements: int, precision: str) -> float:
        return self.per_add_s * elements

    def copy_s(self, elements: int, precision: str) -> float:
        return self.per_copy_s * elements

    def precisions(self) -> tuple[str, ...]:
        return PRECISIONS


def link(bandwidth: float = 1e6, latency_s: float = 0.0, shared: bool = False) -> Link:
    """Return a link with constant bandwidth."""
    return Link(latency_s, ((1.0, bandwidth),), shared)


def made_cluster(workers_per_node: int = 2, nodes: int = 1, **numbers: object) -> Cluster:
    """Return a cluster of round numbers."""
    settings: dict[str, object] = {
        "inside": link(),
        "between": link(1e5) if nodes > 1 else None,
        "compute": Rates(),
        "memory_bytes": 10**9,
        **numbers,
    }
    return Cluster(name="made", nodes=nodes, workers_per_node=workers_per_node, **settings)  # type: ignore[arg-type]
