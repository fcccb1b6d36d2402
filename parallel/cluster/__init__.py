"""The numbers of the hardware: what messages and computing cost, written by hand or measured."""

from __future__ import annotations

from parallel.cluster.cluster import Cluster, Compute, Link
from parallel.cluster.roofline import Roofline

__all__ = ["Cluster", "Compute", "Link", "Roofline"]
