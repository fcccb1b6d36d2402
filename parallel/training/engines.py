"""The engine of each strategy: the runtime, which runs any plan, or the engine of a peer."""

from __future__ import annotations

from parallel.config import PeerConfig
from parallel.models import build_model
from parallel.program.lowering import lower
from parallel.program.required_memory import refuse_too_large
from parallel.runtime.communication.world import World
from parallel.runtime.execution.available_memory import available_memory
from parallel.runtime.execution.engine import Engine
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime
from parallel.runtime.instrumentation.observe import Observer
from parallel.runtime.peers import PEERS
from parallel.runtime.peers.engine import PeerEngine
from parallel.training.job import Job


def open_engine(job: Job, world: World, observer: Observer | None = None) -> Engine:
    """Return the engine of the job's strategy.

    Raises `ValueError` if the plan or the batch does not fit the workers or their memory.
    """
    options = job.config.strategy
    if isinstance(options, PeerConfig):
        return peer_engine(job, options, world, observer)
    return runtime_engine(job, world, observer)


def runtime_engine(job: Job, world: World, observer: Observer | None) -> Runtime:
    """Return the runtime of the job's plan. Raises `ValueError` if the plan needs too much
    memory."""
    if job.plan is None:
        raise RuntimeError(f"strategy={job.config.strategy.name} has no plan")
    trainer = job.config.trainer
    program = lower(job.graph, job.plan, trainer.batch_size, world.host_of, collectives=world.collectives)
    available = world.gather(own_memory(world))
    copies = trainer.checkpoint.saves and world.device.type == "cpu"  # those of a GPU's state are on the host
    refuse_too_large(program, trainer.precision, available, copies=copies)
    model = build_model(job.config.model, job.data.num_classes, trainer.seed)
    return Runtime(program, model, world, EngineOptions.from_config(trainer), observer=observer)


def own_memory(world: World) -> int | None:
    """Return this worker's share of its device's available memory; None: not reported. Every worker calls
    it."""
    free = available_memory(world.device)
    if world.staging is None:
        return free
    places = list(zip(world.host_of, world.gather(str(world.device)), strict=True))
    return None if free is None else free // places.count(places[world.rank])


def peer_engine(job: Job, options: PeerConfig, world: World, observer: Observer | None) -> PeerEngine:
    """Return the engine of an outside reference."""
    trainer = job.config.trainer
    model = build_model(job.config.model, job.data.num_classes, trainer.seed)
    return PeerEngine(
        PEERS[options.name],
        options,
        model,
        world,
        EngineOptions.from_config(trainer),
        batch_size=trainer.batch_size,
        observer=observer,
    )
