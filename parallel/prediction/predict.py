"""Predict a training step of a configuration without the hardware: build the plan, lower it,
simulate it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from parallel.cluster import Cluster, open_cluster
from parallel.cluster.recording import RecordingCompute
from parallel.config import Config, require
from parallel.data import known_images
from parallel.graph import Graph
from parallel.graph.configured import graph_of
from parallel.plans import Layout, Plan, make_plan
from parallel.prediction.basis import doubts
from parallel.prediction.engines import replicated
from parallel.prediction.plans import plan_of
from parallel.simulator.cost_model import CostModel
from parallel.simulator.replicated import simulate_replicated
from parallel.simulator.simulate import lower_on, require_room, simulate
from parallel.simulator.timeline import Timeline


@dataclass(frozen=True)
class Shares:
    """Where a step goes, as fractions of its time with loading; means over the workers."""

    compute: float
    exposed: float
    idle: float
    data: float
    """Waiting for images."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """A predicted step of one configuration on one cluster."""

    config: Config
    timeline: Timeline
    single: Timeline
    """The step of one worker of the same cluster that computes everything, with its own batch."""

    @property
    def label(self) -> str:
        """Strategy and scheme."""
        return self.config.strategy.label

    @property
    def batch_size(self) -> int:
        """Global batch size."""
        return self.timeline.program.batch_size

    @property
    def speedup(self) -> float:
        """Images per second ÷ those of `single`."""
        return self.timeline.images_per_second / self.single.images_per_second

    @property
    def efficiency(self) -> float:
        """Speedup ÷ number of workers."""
        return self.speedup / self.timeline.workers

    @cached_property
    def steps(self) -> int:
        """Steps of an epoch; an incomplete last batch is dropped."""
        return known_images(self.config.data) // self.batch_size

    @property
    def epoch_s(self) -> float:
        """Seconds of an epoch without validation."""
        return self.steps * self.timeline.loaded_step_s

    @property
    def fits(self) -> bool:
        """Whether the memory of every worker suffices."""
        return max(self.timeline.peak_memory) <= self.timeline.cluster.memory_bytes

    @property
    def shares(self) -> Shares:
        """Shares of the step."""
        split, step = self.timeline.split, self.timeline.loaded_step_s
        return Shares(
            float(split.compute_s.mean()) / step,
            float(split.exposed_s.mean()) / step,
            float(split.idle_s.mean()) / step,
            self.timeline.data_wait_s / step,
        )


class Predictor:
    """Predicts configurations, and traces each model only once."""

    def __init__(self) -> None:
        self._graphs: dict[str, Graph] = {}

    def graph(self, config: Config) -> Graph:
        """Return the graph of the configured model."""
        key = repr((config.model, config.data))
        if key not in self._graphs:
            self._graphs[key] = graph_of(config)
        return self._graphs[key]

    def predict(self, config: Config, weak: bool = False) -> Prediction:
        """Return the prediction on the configured cluster; see `predict`."""
        cluster = open_cluster(
            config.cluster, config.worker_count(), channels_last=config.trainer.channels_last
        )
        return predict(config, self.graph(config), cluster, weak)


def predict(config: Config, graph: Graph, cluster: Cluster, weak: bool = False) -> Prediction:
    """Return the prediction on a cluster that has enough workers.

    With `weak`, `trainer.batch_size` is the batch of each worker, and of `single`; otherwise, if
    `trainer.batch_per_worker` is set, that is. Warns if the model was not calibrated on the cluster.
    Raises `ValueError` if the strategy has neither a plan nor a cost model, or its plan does not fit
    the model, the batch or the cluster.
    """
    workers, per_worker = config.worker_count(), config.trainer.batch_per_worker
    require(
        not (weak and per_worker is not None),
        "trainer.batch_per_worker",
        per_worker,
        "is weak scaling by itself: leave out --weak",
    )
    own_batch = per_worker or config.trainer.batch_size
    batch = own_batch * workers if weak or per_worker else own_batch
    scaled = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, batch_size=batch))
    plan = plan_of(config, graph, batch) if config.strategy.makes_plan else None
    timeline, doubt = predict_step(scaled, graph, plan, cluster, cluster.hosts)
    if doubt:
        warnings.warn(doubt, stacklevel=2)
    single = make_plan(graph, 1, {graph.ops[0].name: Layout(on=(0,))})
    alone = lower_on(cluster, graph, single, own_batch)
    return Prediction(scaled, timeline, simulate(alone, cluster, config.trainer.precision))


def predict_step(
    config: Config, graph: Graph, plan: Plan | None, cluster: Cluster, hosts: Sequence[int]
) -> tuple[Timeline, str]:
    """Return the predicted step of a plan, or of the strategy's own engine for None, and a sentence that
    says what was not calibrated, or "".

    `hosts`: host of each worker. Raises `ValueError` as `predict`.
    """
    workers, batch, precision = config.worker_count(), config.trainer.batch_size, config.trainer.precision
    require_room(workers, cluster)
    compute = RecordingCompute(cluster.compute)
    recorded = dataclasses.replace(cluster, compute=compute)
    if plan is None:
        engine = replicated(config, cluster)
        timeline = simulate_replicated(graph, batch, workers, recorded, precision, engine)
    else:
        program = lower_on(cluster, graph, plan, batch, hosts)
        timeline = simulate(program, recorded, precision, CostModel(graph, batch, recorded, precision))
    doubt = doubts(config, cluster, compute.predicted)
    if plan is None and cluster.all_reduce is None and workers > 1 and not doubt:
        doubt = f"cluster {cluster.name} has no measured all-reduce: it is computed from the links, as a ring"
    return dataclasses.replace(timeline, cluster=cluster), doubt
