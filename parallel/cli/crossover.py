"""Predict the borders of a measured crossover on a cluster that the user names."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

from parallel.cli.compose import compose_config
from parallel.cli.schema import config_of
from parallel.cluster import open_cluster
from parallel.config import ClusterConfig, Config, Searched, require
from parallel.prediction.crossover import predict_map
from parallel.results.comparison import TooFewRuns
from parallel.results.crossover import Crossover, PredictedMap
from parallel.results.json_files import naming
from parallel.results.result import Result


def predict_crossover(crossover: Crossover, cluster: str) -> PredictedMap:
    """Return the predicted winners of the strategies of a map, on a cluster of conf/cluster/ or of a
    file (`….yaml`).

    Warns that `searched` is left out: a search for every cell would take hours. Raises `ValueError` if
    there is no such cluster, or a strategy has no prediction on it, and `TooFewRuns` without two others.
    """
    every = {label: _config(result) for label, result in crossover.labels.items()}
    configs = {label: config for label, config in every.items() if not isinstance(config.strategy, Searched)}
    for label in every.keys() - configs.keys():
        warnings.warn(
            f"{label} is left out of the predicted borders: it has a plan of its own for each "
            "batch and rate, and searching them takes long",
            stacklevel=2,
        )
    if len(configs) < 2:
        raise TooFewRuns(f"borders={cluster} needs two strategies besides searched")
    first = next(iter(configs.values()))
    hosts = max(len(result.records[0].hosts) for cell in crossover.cells for result in cell.results)
    return predict_map(
        configs,
        open_cluster(
            _cluster(first.cluster, cluster), crossover.workers, channels_last=first.trainer.channels_last
        ),
        max(1, hosts),
        crossover.rates,
        crossover.batches,
    )


def _cluster(own: ClusterConfig, name: str) -> ClusterConfig:
    """Return the configuration of the named cluster, with the threads of the runs."""
    if name.endswith((".yaml", ".yml")):
        return dataclasses.replace(own, file=name)
    named = compose_config([f"cluster={name}"]).cluster
    return dataclasses.replace(named, threads=own.threads, cache=own.cache)


def _config(result: Result) -> Config:
    """Return the configuration of a result's first run. Raises `ValueError` if its record has none."""
    record = result.records[0]
    where = record.directory or record.name
    require(bool(record.config), "borders", where, "has no configuration to predict: it was imported")
    with naming(Path(where)):
        return dataclasses.replace(config_of(record.config), workers=record.workers)
