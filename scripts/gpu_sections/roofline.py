"""The lower bound of a step from a GPU's data sheet: every op at its peak, or at the memory's bandwidth."""

from __future__ import annotations

import dataclasses

from parallel.cli.compose import compose_config
from parallel.cluster import Cluster, Roofline, open_cluster
from parallel.graph import Graph
from parallel.program.lowering import lower
from parallel.simulator.simulate import simulate
from parallel.strategies import Single, build_plan

CLUSTERS = {"H200": "h200", "H100": "h100", "A100": "a100", "V100": "dgx1", "P100": "two_p100", "K20": "k20"}
"""Cluster file by a part of the GPU's name."""


def cluster_of_gpu(name: str) -> str | None:
    """Return the cluster file with the data sheet of a GPU; None if there is none."""
    return next((cluster for part, cluster in CLUSTERS.items() if part in name), None)


def ideal(cluster: Cluster) -> Cluster:
    """Return the cluster without overheads, at 100 % of its peaks."""
    if not isinstance(cluster.compute, Roofline):
        raise ValueError(f"cluster {cluster.name} has no data sheet")
    compute = dataclasses.replace(cluster.compute, efficiency={}, op_overhead_s=0.0)
    return dataclasses.replace(cluster, compute=compute, step_overhead_s=0.0, data_s_per_image=0.0)


def bound_s(gpu: str, graph: Graph, batch: int, precision: str) -> float | None:
    """Return the bound of a step of `single`; None if the GPU's data sheet is unknown or lacks the precision.

    Multiply-adds are those of direct convolutions, so faster algorithms may come below it.
    """
    name = cluster_of_gpu(gpu)
    if name is None:
        return None
    cluster = ideal(open_cluster(compose_config([f"cluster={name}"]).cluster, 1))
    if precision not in cluster.compute.precisions():
        return None
    return simulate(lower(graph, build_plan(graph, 1, Single()), batch), cluster, precision).step_s
