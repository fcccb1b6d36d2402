"""Verification on worker processes of this machine: one configured strategy, or all default plans."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

from parallel.config import ClusterConfig, Config, require
from parallel.graph import trace
from parallel.models import build_model
from parallel.runtime.communication.chaos import Chaos
from parallel.runtime.communication.spawn import spawn_workers
from parallel.runtime.execution.ddp import check_ddp_batch
from parallel.strategies import build_plan
from parallel.strategies.strategy import Setting
from parallel.verification.default_plans import DefaultPlan, default_cases
from parallel.verification.parity import Case, Difference, compare_cases

TIMEOUT_S = 120.0
"""How long a worker may wait for another: worker 0 also runs the reference, in float64."""


def verify(config: Config, steps: int, batch_size: int | None = None, chaos: Chaos | None = None) -> Difference:
    """Compare the configured strategy with plain PyTorch.

    Without a `batch_size` it is the smallest from 8 that gives every part of every pass two samples or a multiple.
    Raises `ValueError` for a strategy that does not fit.
    """
    require(steps >= 1, "steps", steps, "must be at least 1")
    workers = 1 if config.strategy.name == "single" else config.workers or 1
    model = build_model(config.model, config.model.num_classes or 10, config.trainer.seed)
    shape = (3, config.model.image_size, config.model.image_size)
    setting = Setting(config.trainer.batch_size, config.trainer.precision, config.cluster)
    plan = None if config.strategy.name == "ddp" else build_plan(trace(model, shape), workers, config.strategy, setting)
    if batch_size is None:
        unit = 2 * workers * (1 if plan is None else plan.micro_batches)
        batch_size = unit * math.ceil(8 / unit)
    if plan is None:
        check_ddp_batch(batch_size, workers)
    case = Case(model.share_memory(), plan, shape, batch_size, steps)
    return _spawn([case], workers, True, chaos)[0]


def verify_defaults(steps: int, chaos: Chaos | None) -> Iterator[tuple[DefaultPlan, Difference]]:
    """Compare all default plans, and yield each result; of plans that run together none after one that differs."""
    require(steps >= 1, "steps", steps, "must be at least 1")
    for (workers, shared_memory), together in groupby(sorted(default_cases(steps), key=_world), key=_world):
        plans, cases = zip(*together, strict=True)
        yield from zip(plans, _spawn(cases, workers, shared_memory, chaos), strict=False)


def _world(planned: tuple[DefaultPlan, Case]) -> tuple[int, bool]:
    """Plans that are equal in this run in the same worker processes."""
    return planned[0].workers, planned[0].shared_memory


def _spawn(cases: Sequence[Case], workers: int, shared_memory: bool, chaos: Chaos | None) -> list[Difference]:
    for case in cases:
        _ = case.program  # refuses what does not fit before any process starts
    cluster = ClusterConfig(device="cpu", shared_memory=shared_memory, timeout_s=TIMEOUT_S)
    found: list[Difference] = spawn_workers(compare_cases, workers, cases, cluster, chaos)[0]
    return found
