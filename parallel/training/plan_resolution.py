"""Resolve the plan of `strategy=searched`: worker 0 searches, and all workers use its plan.

With `strategy.confirm=true`, all workers run the best predicted candidates for some steps, and use
the one that was measured as the fastest.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from parallel.cluster import open_cluster
from parallel.config import Config, Searched, TrainerConfig
from parallel.graph import Graph
from parallel.models import build_model
from parallel.plans import Plan
from parallel.program.lowering import lower
from parallel.program.precision import DTYPES
from parallel.runtime.communication.world import World
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime
from parallel.search.kept_plans import KeptPlan
from parallel.search.resolve import Candidate, Request, confirm, find, keep, reuse
from parallel.strategies.named import named_plans

WARM_UP = 2
"""Untimed steps of each candidate."""


def resolve_plan(config: Config, options: Searched, graph: Graph, world: World) -> Plan:
    """Return the same plan on all workers. Raises `ValueError` on all of them if the search
    fails."""
    answer = world.gather(_search(config, options, graph, world) if world.rank == 0 else None)[0]
    if isinstance(answer, str):
        raise ValueError(answer)
    if answer is None:
        raise RuntimeError("worker 0 sent no plan")
    kept = answer.kept
    timed = answer.candidates[: options.candidates]
    if not options.confirm or not timed:
        return kept.plan
    model = build_model(config.model, graph.ops[-2].shape[0], seed=0)
    own = [
        _step_seconds(config.trainer, graph, model, candidate.plan, world, options.confirm_steps)
        for candidate in timed
    ]
    kept = confirm(kept, timed, world.gather(own)[0])  # the times of worker 0 decide
    if world.rank == 0:
        keep(kept, _request(config, options, graph, world))
        _tell(
            "timed: " + ", ".join(f"{label} {1000 * s:.1f} ms a step" for label, s in kept.confirmed.items())
        )
    return kept.plan


@dataclass(frozen=True)
class _Answer:
    """The plan that worker 0 found or had kept. A kept plan has no candidates."""

    kept: KeptPlan
    candidates: Sequence[Candidate]


def _request(config: Config, options: Searched, graph: Graph, world: World) -> Request:
    return Request(
        graph,
        world.size,
        config.trainer.batch_size,
        config.trainer.precision,
        open_cluster(config.cluster, world.size),
        options,
    )


def _search(config: Config, options: Searched, graph: Graph, world: World) -> _Answer | str:
    """Return a plan with its candidates, or an error message."""
    try:
        request = _request(config, options, graph, world)
        kept = reuse(request)
        candidates: list[Candidate] = []
        if kept is None:
            _tell("searching for the fastest plan")
            named = named_plans(graph, world.size, request.batch_size)
            kept, candidates = find(request, named, progress=_tell)
    except ValueError as error:
        return str(error)
    predicted = f"{1000 * kept.predicted_step_s:.1f} ms a step"
    _tell(f"plan {kept.plan.fingerprint}, predicted {predicted}: {kept.certificate}")
    return _Answer(kept, candidates)


def _step_seconds(
    trainer: TrainerConfig, graph: Graph, model: nn.Module, plan: Plan, world: World, steps: int
) -> float:
    """Return the median time of a step of the plan, on random images."""
    runtime = Runtime(
        lower(graph, plan, trainer.batch_size), model, world, EngineOptions.from_config(trainer)
    )
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(trainer.batch_size, *graph.input_shape, generator=generator)
    labels = torch.randint(graph.ops[-2].shape[0], (trainer.batch_size,), generator=generator)
    layout = torch.channels_last if trainer.channels_last else torch.contiguous_format
    images = images[runtime.image_positions].to(world.device, DTYPES[trainer.precision])
    images = images.contiguous(memory_format=layout)
    labels = labels[runtime.label_positions].to(world.device)
    seconds = []
    for step in range(WARM_UP + steps):
        world.barrier()
        begin = time.perf_counter()
        runtime.train_step(images, labels, step=step, lr=0.0)
        world.barrier()
        seconds.append(time.perf_counter() - begin)
    runtime.close()
    return statistics.median(seconds[WARM_UP:])


def _tell(text: str) -> None:
    print(f"searched: {text}", file=sys.stderr, flush=True)
