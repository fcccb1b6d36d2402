"""The parts of a run that need no process group: the data, the graph of the model, the plan."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from parallel.config import Config, Searched
from parallel.data import DataSet, open_data
from parallel.graph import Graph
from parallel.graph.configured import model_graph
from parallel.models import build_model
from parallel.plans import Plan
from parallel.program.precision import DTYPES
from parallel.results.hosts import hosts_line
from parallel.runtime.communication.world import World
from parallel.strategies import build_plan


@dataclass(frozen=True)
class Job:
    """A run, validated as far as a single process can."""

    config: Config
    workers: int
    data: DataSet
    graph: Graph
    plan: Plan | None
    """None: the strategy makes no plan, or the plan has yet to be searched for."""

    @property
    def label(self) -> str:
        """Label of the strategy in tables and progress bars."""
        return self.config.strategy.label


def prepare(config: Config, verbose: bool) -> Job:
    """Open the data and make the plan.

    `verbose` shows the progress of decoding; only one rank should set it.
    """
    data = open_data(config.data, config.model.image_size, config.trainer.seed, verbose)
    graph = model_graph(config.model, data.num_classes)
    workers = config.worker_count()
    later = isinstance(config.strategy, Searched) or not config.strategy.makes_plan
    plan = None if later else build_plan(graph, workers, config.strategy)
    return Job(config, workers, data, graph, plan)


def empty_state(job: Job) -> dict[str, Tensor]:
    """Return the model's `state_dict` on the meta device: names, shapes and dtypes."""
    with torch.device("meta"):
        state: dict[str, Tensor] = build_model(job.config.model, job.data.num_classes, seed=0).state_dict()
    return state


def describe(job: Job, world: World) -> str:
    """Describe the run: the model's size; workers, threads, batch and plan; the hosts, if there are
    several. One line each."""
    config = job.config
    model = config.model
    graph = job.graph
    size = graph.parameter_count * DTYPES[config.trainer.precision].itemsize
    plan = "" if job.plan is None else f", plan {job.plan.fingerprint}"
    place = f"cpu, cluster.threads={config.cluster.threads}" if world.device.type == "cpu" else "cuda"
    return (
        f"{model.label}, {model.image_size} px, {job.data.num_classes} classes: "
        f"{graph.parameter_count:,} parameters, {size / 2**20:.0f} MB, "
        f"{graph.multiply_adds / 1e9:.2f} G multiply-adds an image\n"
        f"{job.label}: workers={job.workers} on {place}; {job.data.name}, "
        f"global batch {config.trainer.batch_size}, {config.trainer.precision}{plan}"
        + (f"\n{hosts_line(world.hosts)}" if len(world.hosts) > 1 else "")
    )
