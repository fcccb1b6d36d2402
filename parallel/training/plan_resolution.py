"""Resolve the plan of `strategy=searched`: worker 0 searches, and all workers use its plan.

With `strategy.confirm=true`, all workers run the best predicted candidates for some steps, and use
the one that was measured as the fastest.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

from parallel.cluster import open_cluster
from parallel.config import Config, Searched, TrainerConfig
from parallel.config.stderr import print_to_stderr
from parallel.data.random_batch import random_batch
from parallel.graph import Graph
from parallel.models import build_model
from parallel.plans import Plan, read_plan
from parallel.program.lowering import lower
from parallel.program.precision import DTYPES
from parallel.results.formatting import percent
from parallel.runtime.communication.world import World
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime
from parallel.search.kept_plans import read_kept
from parallel.search.resolve import Candidate, Request, confirm, find, keep, reuse
from parallel.strategies.named import named_plans

WARM_UP = 2
"""Untimed steps of each candidate."""


def resolve_plan(config: Config, options: Searched, graph: Graph, world: World) -> Plan:
    """Return the same plan on all workers. Raises `ValueError` on all of them if the search
    fails."""
    found, candidates = world.from_first(lambda: _search(config, options, graph, world))
    kept = read_kept(found, graph, world.size)
    timed = [
        Candidate(label, read_plan(plan, graph, world.size), seconds)
        for label, plan, seconds in candidates[: options.candidates]
    ]
    if not options.confirm or not timed:
        return kept.plan
    model = build_model(config.model, graph.ops[-2].shape[0], seed=0)
    seconds = [
        _step_seconds(config.trainer, graph, model, candidate.plan, world, options.confirm_steps)
        for candidate in timed
    ]
    kept = confirm(kept, timed, world.gather(seconds)[0])  # the times of worker 0 decide
    if world.rank == 0:
        keep(kept, _request(config, options, graph, world))
        _tell(
            "timed: " + ", ".join(f"{label} {1000 * s:.1f} ms a step" for label, s in kept.confirmed.items())
        )
    return kept.plan


_Found = tuple[str, list[tuple[str, str, float]]]
"""What worker 0 sends: the file of the plan that it found or had kept, and label, plan and predicted
seconds of each candidate. A kept plan has no candidates."""


def _request(config: Config, options: Searched, graph: Graph, world: World) -> Request:
    return Request(
        graph,
        world.size,
        config.trainer.batch_size,
        config.trainer.precision,
        open_cluster(
            config.cluster, world.size, world.node_workers, channels_last=config.trainer.channels_last
        ),
        options,
    )


def _search(config: Config, options: Searched, graph: Graph, world: World) -> _Found:
    """Return a plan with its candidates."""
    request = _request(config, options, graph, world)
    if request.cluster.speeds:
        speeds = ", ".join(percent(speed, 0) for speed in request.cluster.speeds)
        _tell(f"cluster {request.cluster.name} has workers with speeds of {speeds}")
    kept = reuse(request)
    candidates: list[Candidate] = []
    if kept is None:
        _tell("searching for the fastest plan")
        named = named_plans(graph, world.size, request.batch_size)
        kept, candidates = find(request, named, progress=_tell)
    predicted = f"{1000 * kept.predicted_step_s:.1f} ms a step"
    _tell(f"plan {kept.plan.fingerprint}, predicted {predicted}: {kept.certificate}")
    plain = [(candidate.label, str(candidate.plan), candidate.predicted_step_s) for candidate in candidates]
    return str(kept), plain


def _step_seconds(
    trainer: TrainerConfig, graph: Graph, model: nn.Module, plan: Plan, world: World, steps: int
) -> float:
    """Return the median time of a step of the plan, on random images.

    What a step leaves to the next one's forward is timed there, as in training.
    """
    program = lower(graph, plan, trainer.batch_size, world.host_of, collectives=world.collectives)
    runtime = Runtime(program, model, world, EngineOptions.from_config(trainer))
    images, labels = random_batch(
        trainer.batch_size, graph.input_shape, graph.ops[-2].shape[0], seed=0, dtype=DTYPES[trainer.precision]
    )
    layout = torch.channels_last if trainer.channels_last else torch.contiguous_format
    images = images[runtime.image_positions].to(world.device).contiguous(memory_format=layout)
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
    print_to_stderr(f"searched: {text}")
