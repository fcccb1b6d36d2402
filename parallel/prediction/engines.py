"""Cost models of the engines that run no plan: how each replicates the model."""

from __future__ import annotations

from parallel.cluster import Cluster
from parallel.config import Config, PeerConfig, require
from parallel.simulator.replicated import Replicated

MEGABYTE = 2**20
"""Bytes of a megabyte in torch's bucket_cap_mb."""


def replicated(config: Config, cluster: Cluster) -> Replicated:
    """Return how the engine of the configured strategy replicates the model.

    Raises `ValueError` if it has no cost model, or if the batch does not divide equally.
    """
    bucket_mb, first_mb = require_cost_model(config)
    workers, batch = config.worker_count(), config.trainer.batch_size
    require(
        batch % workers == 0,
        "trainer.batch_size",
        batch,
        f"must be a multiple of workers={workers} for strategy={config.strategy.name}, which averages equal parts",
    )
    return Replicated(
        round(bucket_mb * MEGABYTE),
        None if first_mb is None else round(first_mb * MEGABYTE),
        hierarchical=cluster.collectives,
    )


def require_cost_model(config: Config) -> tuple[float, float | None]:
    """Return the megabytes of the buckets that the configured engine all-reduces, and of the first one
    if it differs.

    Raises `ValueError` if it has no cost model.
    """
    options = config.strategy
    if not isinstance(options, PeerConfig) or options.all_reduce_mb is None:
        raise ValueError(f"strategy={options.name} has no cost model: it makes no plan")
    return options.all_reduce_mb, options.first_all_reduce_mb
