"""The plan of a run whose strategy is `searched`: worker 0 searches, all workers take what it found.

With `strategy.confirm=true` all workers run the best predicted candidates for some steps, and the fastest wins.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from parallel.cluster import Cluster, open_cluster
from parallel.config import Config
from parallel.graph import Graph
from parallel.models import build_model
from parallel.plans import Plan
from parallel.program.lowering import lower
from parallel.program.precision import DTYPES
from parallel.runtime.communication.world import World
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime
from parallel.strategies.saved import SavedPlan
from parallel.strategies.searched import Candidate, confirm, find, keep, reusable
from parallel.strategies.strategy import Setting

WARM_UP = 2
"""Untimed steps of each candidate."""


def settle(config: Config, graph: Graph, num_classes: int, world: World) -> Plan:
    """The plan that all workers run. Raises `ValueError` on every worker for what worker 0 cannot search for."""
    setting = Setting(config.trainer.batch_size, config.trainer.precision, config.cluster)
    answer = world.gather(_answer(config, graph, setting, world) if world.rank == 0 else None)[0]
    if isinstance(answer, str):
        raise ValueError(answer)
    if answer is None:
        raise RuntimeError("worker 0 has no plan to tell")
    saved, chosen = answer.saved, answer.candidates[: config.strategy.candidates]
    if config.strategy.confirm and chosen:
        model = build_model(config.model, num_classes, seed=0)
        own = [_time(config, graph, model, candidate.plan, world) for candidate in chosen]
        seconds = world.gather(own)[0]  # one worker's times decide, for all
        saved = confirm(saved, chosen, seconds)
        if world.rank == 0:
            keep(saved, answer.cluster, config.strategy)
            _tell("timed: " + ", ".join(f"{label} {1000 * s:.1f} ms a step" for label, s in saved.confirmed.items()))
    return saved.plan


@dataclass(frozen=True)
class _Answer:
    """What worker 0 found, or knew already; then there are no candidates."""

    saved: SavedPlan
    candidates: Sequence[Candidate]
    cluster: Cluster


def _answer(config: Config, graph: Graph, setting: Setting, world: World) -> _Answer | str:
    """What worker 0 has to say: a plan, or the sentence that says why there is none."""
    try:
        cluster = open_cluster(setting.cluster, world.size)
        saved = reusable(graph, world.size, config.strategy, setting, cluster)
        candidates: list[Candidate] = []
        if saved is None:
            _tell("searching for the fastest plan")
            saved, candidates = find(graph, world.size, config.strategy, setting, cluster, progress=_tell)
    except ValueError as error:
        return str(error)
    predicted = f"{1000 * saved.predicted_step_s:.1f} ms a step"
    _tell(f"plan {saved.plan.fingerprint}, predicted {predicted}: {saved.certificate}")
    return _Answer(saved, candidates, cluster)


def _time(config: Config, graph: Graph, model: nn.Module, plan: Plan, world: World) -> float:
    """Median seconds of a step of the plan, on random images."""
    trainer = config.trainer
    runtime = Runtime(lower(graph, plan, trainer.batch_size), model, world,
                      EngineOptions.from_config(trainer))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(trainer.batch_size, *graph.input_shape, generator=generator)
    labels = torch.randint(graph.ops[-2].shape[0], (trainer.batch_size,), generator=generator)
    layout = torch.channels_last if trainer.channels_last else torch.contiguous_format
    images = images[runtime.image_positions].to(world.device, DTYPES[trainer.precision])
    images = images.contiguous(memory_format=layout)
    labels = labels[runtime.label_positions].to(world.device)
    seconds = []
    for step in range(WARM_UP + config.strategy.confirm_steps):
        world.barrier()
        begin = time.perf_counter()
        runtime.train_step(images, labels, step=step, lr=0.0)
        world.barrier()
        seconds.append(time.perf_counter() - begin)
    runtime.close()
    return statistics.median(seconds[WARM_UP:])


def _tell(text: str) -> None:
    print(f"searched: {text}", file=sys.stderr, flush=True)
