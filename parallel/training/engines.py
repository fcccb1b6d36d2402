"""The engine of each strategy.

Strategies that make a plan use the runtime, which runs any plan. The others are outside references;
each has an entry in `ENGINES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from parallel.config import Ddp
from parallel.models import build_model
from parallel.program.lowering import lower
from parallel.program.required_memory import refuse_too_large
from parallel.runtime.communication.world import World
from parallel.runtime.execution.available_memory import available_memory
from parallel.runtime.execution.ddp import DDPEngine
from parallel.runtime.execution.engine import Engine
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime
from parallel.runtime.instrumentation.observe import Observer
from parallel.training.job import Job

EngineFactory = Callable[[Job, World, "Observer | None"], Engine]


def open_engine(job: Job, world: World, observer: Observer | None = None) -> Engine:
    """Return the engine of the job's strategy.

    Raises `ValueError` if the plan or the batch does not fit the workers or their memory.
    """
    return ENGINES.get(job.config.strategy.name, runtime_engine)(job, world, observer)


def runtime_engine(job: Job, world: World, observer: Observer | None) -> Runtime:
    """Return the runtime of the job's plan. Raises `ValueError` if the plan needs too much
    memory."""
    if job.plan is None:
        raise RuntimeError(f"strategy={job.config.strategy.name} has neither a plan nor an entry in ENGINES")
    trainer = job.config.trainer
    program = lower(job.graph, job.plan, trainer.batch_size)
    available = world.gather(available_memory(world.device))
    copies = trainer.checkpoint.saves and world.device.type == "cpu"  # those of a GPU's state are on the host
    refuse_too_large(program, trainer.precision, available, copies=copies)
    model = build_model(job.config.model, job.data.num_classes, trainer.seed)
    return Runtime(program, model, world, EngineOptions.from_config(trainer), observer=observer)


def ddp_engine(job: Job, world: World, observer: Observer | None) -> DDPEngine:
    """Return torch's DistributedDataParallel."""
    options = job.config.strategy
    if not isinstance(options, Ddp):
        raise TypeError(f"DDP has options of type {type(options).__name__}")
    trainer = job.config.trainer
    model = build_model(job.config.model, job.data.num_classes, trainer.seed)
    return DDPEngine(
        model,
        world,
        EngineOptions.from_config(trainer),
        batch_size=trainer.batch_size,
        bucket_mb=options.bucket_mb,
        observer=observer,
    )


ENGINES: Mapping[str, EngineFactory] = {"ddp": ddp_engine}
"""Engines of strategies without a plan, by the name of the strategy."""
