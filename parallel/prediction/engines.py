"""Cost models of the engines that run no plan: how each replicates the model."""

from __future__ import annotations

from parallel.cluster import Cluster
from parallel.config import Config, PeerConfig
from parallel.simulator.replicated import Replicated

MEGABYTE = 2**20
"""Bytes of a megabyte in torch's bucket_cap_mb."""


def replicated(config: Config, cluster: Cluster) -> Replicated:
    """Return how the engine of the configured strategy replicates the model.

    Raises `ValueError` if it has no cost model, or if the batch does not divide equally.
    """
    peer, bucket_mb = require_cost_model(config)
    peer.check_equal_parts(config.trainer.batch_size, config.worker_count())
    first_mb = peer.first_all_reduce_mb
    return Replicated(
        round(bucket_mb * MEGABYTE),
        None if first_mb is None else round(first_mb * MEGABYTE),
        hierarchical=cluster.collectives,
    )


def require_cost_model(config: Config) -> tuple[PeerConfig, float]:
    """Return the configured engine's options, and the megabytes of the buckets that it all-reduces.

    Raises `ValueError` if it has no cost model.
    """
    options = config.strategy
    if not isinstance(options, PeerConfig) or options.all_reduce_mb is None:
        raise ValueError(f"strategy={options.name} has no cost model: it makes no plan")
    return options, options.all_reduce_mb
