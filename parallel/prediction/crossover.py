"""Predict which strategy wins at which link rate and batch, on a grid finer than can be measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from parallel.cluster import Cluster, Link
from parallel.config import Config, require
from parallel.graph.configured import graph_of
from parallel.prediction.plans import plan_of
from parallel.prediction.predict import predict_step
from parallel.results.crossover import PredictedCell, PredictedMap
from parallel.simulator.cost_model import CostModel
from parallel.simulator.simulate import lower_on, simulate

BEYOND = 8
"""The grid ends at this many times the largest measured batch, since borders may lie beyond."""


def predict_map(
    configs: Mapping[str, Config],
    cluster: Cluster,
    hosts: int,
    rates: Sequence[float],
    batches: Sequence[int],
) -> PredictedMap:
    """Return the predicted steps of the strategies, by label, with links of these rates between `hosts`.

    The grid contains the measured rates (bits per second, infinite if not limited) and batches.
    Raises `ValueError` if a strategy cannot be predicted on the cluster.
    """
    first = next(iter(configs.values()))
    graph, precision = graph_of(first), first.trainer.precision  # equal for all, as the workload is
    workers = max(config.worker_count() for config in configs.values())
    clusters = {rate: with_links(cluster, hosts, workers, rate) for rate in finer_rates(rates)}
    nodes = next(iter(clusters.values())).hosts
    cells = []
    for batch in finer_batches(batches, workers):
        programs = {
            label: lower_on(cluster, graph, plan_of(config, graph, batch), batch, nodes)
            for label, config in configs.items()
            if config.strategy.makes_plan
        }
        engines = {
            label: _with_batch(config, batch) for label, config in configs.items() if label not in programs
        }
        for rate, limited in clusters.items():
            costs = CostModel(graph, batch, limited, precision)
            times = {
                label: simulate(program, limited, precision, costs).loaded_step_s
                for label, program in programs.items()
            } | {
                label: predict_step(config, graph, None, limited, nodes)[0].loaded_step_s
                for label, config in engines.items()
            }
            cells.append(PredictedCell(rate, batch, times))
    return PredictedMap(cluster.name, tuple(cells))


def with_links(cluster: Cluster, hosts: int, workers: int, rate: float) -> Cluster:
    """Return the cluster with its workers on `hosts` nodes, and links of at most `rate` bits per second
    between them.

    Raises `ValueError` if the nodes cannot have equally many workers.
    """
    require(workers % hosts == 0, "workers", workers, f"must be a multiple of the {hosts} hosts")
    per_node = workers // hosts
    link = cluster.between or cluster.inside
    points = tuple((nbytes, min(speed, rate / 8)) for nbytes, speed in link.bandwidth)
    contention = cluster.core_contention[:per_node]
    return dataclasses.replace(
        cluster,
        nodes=hosts,
        workers_per_node=per_node,
        node_workers=(),
        speeds=(),
        between=Link(link.latency_s, points, shared=per_node > 1),
        core_contention=contention if len(contention) == per_node else (),
        machine={},
        all_reduce=cluster.all_reduce if math.isinf(rate) else None,  # measured on other links
    )


def finer_batches(batches: Sequence[int], workers: int) -> list[int]:
    """Return batches from the smallest to `BEYOND` times the largest, the given ones among them. All but
    those are multiples of the workers."""
    between = _geometric(min(batches), BEYOND * max(batches), math.sqrt(2))
    rounded = [max(1, round(batch / workers)) * workers for batch in between]
    return [int(batch) for batch in _with_given(batches, rounded, 1.1)]


def finer_rates(rates: Sequence[float]) -> list[float]:
    """Return rates from half of the slowest to twice the fastest, the given ones among them."""
    limited = [rate for rate in rates if math.isfinite(rate)]
    between = _geometric(min(limited) / 2, 2 * max(limited), 2.0) if limited else []
    return _with_given(rates, between, 1.3)


def _geometric(low: float, high: float, ratio: float) -> list[float]:
    steps = math.floor(math.log(high / low, ratio) + 1e-9)
    return [low * ratio**i for i in range(steps + 1)]


def _with_given(given: Sequence[float], others: Sequence[float], near: float) -> list[float]:
    """Return the given values and those of the others that no given one is near to, in order."""
    far = [other for other in others if not any(1 / near < other / one < near for one in given)]
    return sorted({*given, *far})


def _with_batch(config: Config, batch: int) -> Config:
    trainer = dataclasses.replace(config.trainer, batch_size=batch, batch_per_worker=None)
    return dataclasses.replace(config, trainer=trainer)
