"""Clusters: the times of messages and computing on hardware, from data sheets or measured."""

from __future__ import annotations

from parallel.cluster.cluster import AllReduce, Cluster, Compute, Link
from parallel.cluster.files import cluster_of, read_cluster, write_cluster
from parallel.cluster.measured import Measured
from parallel.cluster.open import open_cluster
from parallel.cluster.roofline import Roofline

__all__ = [
    "AllReduce",
    "Cluster",
    "Compute",
    "Link",
    "Measured",
    "Roofline",
    "cluster_of",
    "open_cluster",
    "read_cluster",
    "write_cluster",
]
