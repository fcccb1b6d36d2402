"""Predictions: what a configuration would take, without the hardware."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import torch

from parallel.cluster import Cluster
from parallel.config import Config, require
from parallel.data import known_classes, known_images
from parallel.graph import Graph, trace
from parallel.models import build_model
from parallel.plans import Layout, make_plan
from parallel.program.lowering import lower
from parallel.simulator.cost_model import CostModel
from parallel.simulator.simulate import simulate
from parallel.simulator.timeline import Timeline
from parallel.strategies import build_plan
from parallel.strategies.strategy import Setting


@dataclass(frozen=True, eq=False)
class Prediction:
    """One configuration on one cluster."""

    config: Config
    timeline: Timeline
    single: Timeline
    """Of the plan with everything on one worker of the same cluster, and its batch."""

    @property
    def label(self) -> str:
        """The strategy as rows name it."""
        return " ".join(filter(None, (self.config.strategy.name, self.config.strategy.scheme)))

    @property
    def batch_size(self) -> int:
        return self.timeline.program.batch_size

    @property
    def speedup(self) -> float:
        """Images per second, those of `single` being 1."""
        return self.timeline.images_per_second / self.single.images_per_second

    @property
    def efficiency(self) -> float:
        """Speedup by worker."""
        return self.speedup / self.timeline.workers

    @cached_property
    def steps(self) -> int:
        """Of an epoch: the last partial batch is left out."""
        return known_images(self.config.data) // self.batch_size

    @property
    def epoch_s(self) -> float:
        """Seconds of an epoch, validation not counted."""
        return self.steps * self.timeline.loaded_step_s

    @property
    def fits(self) -> bool:
        """Whether every worker has the memory it needs."""
        return max(self.timeline.peak_memory) <= self.timeline.cluster.memory_bytes


def graph_of(config: Config) -> Graph:
    """The graph of the configured model."""
    side, classes = config.model.image_size, config.model.num_classes or known_classes(config.data)
    with torch.device("meta"):
        return trace(build_model(config.model, classes, 0), (3, side, side))


def predict(config: Config, graph: Graph, cluster: Cluster, weak: bool = False) -> Prediction:
    """The prediction for a configuration with `workers` set, on a cluster that has as many.

    `weak`: trainer.batch_size is that of every worker, and so is that of `single`. Raises `ValueError` for a plan that
    cannot be.
    """
    require(config.strategy.name != "ddp", "strategy", "ddp", "makes no plan to simulate: torch's own "
            "DistributedDataParallel runs")
    workers = 1 if config.strategy.name == "single" else config.workers or 1
    precision, own_batch = config.trainer.precision, config.trainer.batch_size
    batch = own_batch * workers if weak else own_batch
    setting = Setting(batch, precision, config.cluster)
    program = lower(graph, build_plan(graph, workers, config.strategy, setting), batch)
    timeline = simulate(program, cluster, precision, CostModel(graph, batch, cluster, precision))
    alone = lower(graph, make_plan(graph, 1, {graph.ops[0].name: Layout(on=(0,))}), own_batch)
    scaled = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, batch_size=batch))
    return Prediction(scaled, timeline, simulate(alone, cluster, precision))
