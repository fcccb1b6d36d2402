"""The record of a run that has ended."""

from __future__ import annotations

import dataclasses
import os
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch

from parallel.program.precision import DTYPES
from parallel.results.command_line import recorded_command
from parallel.results.environment import collect_environment
from parallel.results.load import Load
from parallel.results.records import Attempt, Epoch, Record, Workload
from parallel.results.settings import LOOPBACK, SHARED_MEMORY
from parallel.results.stragglers import Straggler
from parallel.runtime.communication.gpu_facts import gpu_facts
from parallel.runtime.communication.world import World
from parallel.training.job import Job


def now() -> str:
    """Return the current time in the format of records."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def workload_of(job: Job) -> Workload:
    """Return the workload of a run."""
    config, model = job.config, job.config.model
    return Workload(
        model=model.name,
        variant=model.variant,
        num_classes=job.data.num_classes,
        image_size=model.image_size,
        data=job.data.name,
        train_images=len(job.data.train),
        batch_size=config.trainer.batch_size,
        precision=config.trainer.precision,
    )


def make_record(
    job: Job,
    world: World,
    run_dir: Path,
    *,
    attempts: tuple[Attempt, ...],
    restarts: int,
    epochs: tuple[Epoch, ...],
    stragglers: tuple[Straggler, ...] | None,
    load: Load | None,
    weights_changed: bool | None,
) -> Record:
    """Return the record of a run that ends now."""
    config = job.config
    parameters = job.graph.parameter_count
    cuda = world.device.type == "cuda"
    environment = collect_environment(
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        gpu_facts(world.device),
    )
    return Record(
        name=run_dir.name,
        sweep=config.sweep,
        started=attempts[0].started,
        finished=now(),
        command=recorded_command(os.environ, sys.orig_argv),
        workload=workload_of(job),
        strategy=config.strategy.name,
        scheme=config.strategy.scheme,
        label=config.strategy.full_label(None if job.plan is None else job.plan.fingerprint),
        baseline=config.strategy.baseline,
        workers=job.workers,
        threads=config.cluster.threads,
        device=world.device.type,
        backend=world.backend,
        hosts=world.hosts,
        transport=_transport(job, world),
        warmup_steps=config.trainer.warmup_steps,
        parameters=parameters,
        parameter_bytes=parameters * DTYPES[config.trainer.precision].itemsize,
        forward_flops=2 * job.graph.multiply_adds,
        plan=None if job.plan is None else str(job.plan),
        attempts=attempts,
        restarts=restarts,
        stragglers=stragglers,
        load=load,
        weights_changed=weights_changed,
        config=dataclasses.asdict(config),
        environment=environment,
        epochs=epochs,
    )


def _transport(job: Job, world: World) -> str | None:
    """Return how workers of one host pass messages. Only the runtime uses shared memory."""
    if world.on_host.device.type != "cpu" or job.workers == len(world.hosts):
        return None
    return SHARED_MEMORY if job.plan is not None and job.config.cluster.shared_memory else LOOPBACK
