"""Verify one configured strategy or all default plans, in worker processes on this machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from parallel.config import ClusterConfig, Config, Ddp, PeerConfig, require
from parallel.graph import trace
from parallel.models import build_model
from parallel.prediction.plans import plan_of
from parallel.runtime.communication.chaos import Chaos
from parallel.runtime.communication.device import this_machine
from parallel.runtime.communication.spawn import spawn_workers
from parallel.verification.cluster import cluster_for
from parallel.verification.default_plans import DefaultPlan, default_cases
from parallel.verification.parity import Case, Difference, compare_cases

TIMEOUT_S = 600.0
"""Time limit of a wait for another worker; worker 0 also trains the whole model in float64."""
CPU = ClusterConfig(device="cpu")


def verify(
    config: Config,
    steps: int,
    batch_size: int | None = None,
    chaos: Chaos | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Difference:
    """Compare the configured strategy with plain PyTorch; `tell` is told where.

    Without `batch_size`, the global batch is the smallest multiple of 2 · workers · micro-batches
    that is at least 8. Raises `ValueError` for a strategy that does not fit.
    """
    require(steps >= 1, "steps", steps, "must be at least 1")
    workers = config.worker_count()
    model = build_model(config.model, config.model.num_classes or 10, config.trainer.seed)
    shape = (3, config.model.image_size, config.model.image_size)
    plan = plan_of(config, trace(model, shape)) if config.strategy.makes_plan else None
    if batch_size is None:
        unit = 2 * workers * (1 if plan is None else plan.micro_batches)
        batch_size = unit * math.ceil(8 / unit)
    peer = config.strategy if isinstance(config.strategy, PeerConfig) else Ddp()
    if plan is None:
        peer.check_equal_parts(batch_size, workers)
    peer.require_installed()
    peer.check_precision("fp64")
    case = Case(model.share_memory(), plan, shape, batch_size, steps, peer=peer)
    _ = case.program  # raises ValueError for an invalid case
    cluster, where = cluster_for(config.cluster, this_machine(), workers, chaos=chaos is not None)
    tell(where)
    return _spawn([case], workers, replace(cluster, timeout_s=TIMEOUT_S), chaos)[0]


def verify_defaults(
    steps: int,
    chaos: Chaos | None,
    timeout_s: float = TIMEOUT_S,
    wanted: ClusterConfig = CPU,
    tell: Callable[[str], None] = lambda line: None,
) -> Iterator[tuple[DefaultPlan, Difference]]:
    """Compare the default plans on the `wanted` device and yield the results; `tell` is told where.

    Plans run in groups; a group stops after its first difference.
    """
    require(steps >= 1, "steps", steps, "must be at least 1")
    machine, told = this_machine(), set[str]()
    worlds: dict[tuple[int, bool], list[tuple[DefaultPlan, Case]]] = {}
    for default, case in default_cases(steps):
        worlds.setdefault((default.workers, default.shared_memory), []).append((default, case))
    # Plans for the same number of workers run in the same processes. The largest group goes first.
    for (workers, shared_memory), together in sorted(worlds.items(), key=lambda item: -len(item[1])):
        plans, cases = zip(*together, strict=True)
        cluster, where = cluster_for(wanted, machine, workers, chaos=chaos is not None)
        if where not in told:
            told.add(where)
            tell(where)
        cluster = replace(cluster, shared_memory=shared_memory, timeout_s=timeout_s)
        yield from zip(plans, _spawn(cases, workers, cluster, chaos), strict=False)


def _spawn(
    cases: Sequence[Case], workers: int, cluster: ClusterConfig, chaos: Chaos | None
) -> list[Difference]:
    for case in cases:
        _ = case.program  # raises ValueError for an invalid case before any process starts
    found: list[Difference] = spawn_workers(compare_cases, workers, cases, cluster, chaos)[0]
    return found
