"""Save the state of an engine after some steps, and load it into any other."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from parallel.checkpoints.checkpoint import Checkpoint
from parallel.checkpoints.manifest import Manifest
from parallel.checkpoints.saver import Saver
from parallel.config import PeerConfig
from parallel.graph import trace
from parallel.plans import read_plan
from parallel.results.records import Attempt, Epoch, Workload
from parallel.runtime.communication.opening import open_world
from parallel.runtime.communication.world import World
from parallel.runtime.execution.engine import Engine
from parallel.runtime.execution.gathered import gathered
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime
from parallel.runtime.peers import PEERS
from parallel.runtime.peers.engine import PeerEngine
from tests.support.setups import Setup
from tests.support.small_models import CLASSES, build

BATCH, STEPS = 12, 2
KINDS = ("weights", "momentum", "buffers")
OPTIONS = EngineOptions(seed=0, momentum=0.9, weight_decay=0.01)
State = dict[str, dict[str, Tensor]]
"""Tensors by kind and name."""
PLAIN = Setup()


def open_engine(
    model: str, plan: str | PeerConfig, world: World, setup: Setup, options: EngineOptions
) -> Engine:
    network, shape = build(model)
    if isinstance(plan, PeerConfig):
        return PeerEngine(PEERS[plan.name], plan, network, world, options, batch_size=BATCH)
    graph = trace(network, shape)
    return Runtime(setup.lower(graph, read_plan(plan, graph), BATCH), network, world, options)


def manifest(workers: int) -> Manifest:
    return Manifest(
        run="run",
        time=0.0,
        step=STEPS,
        steps_per_epoch=1,
        workload=Workload(
            model="tower",
            variant=None,
            num_classes=CLASSES,
            image_size=17,
            data="none",
            train_images=BATCH,
            batch_size=BATCH,
            precision="fp32",
        ),
        seed=0,
        strategy="any",
        workers=workers,
        plan=None,
        config={},
        attempts=(Attempt(step=0, started="2026-01-01", label="any", workers=workers, plan=None),),
        epochs=tuple(Epoch(epoch=1 + i, seconds=1.0) for i in range(STEPS)),
        begun=None,
    )


def state_of(engine: Engine, world: World) -> State:
    return {kind: gathered(engine, kind, world) for kind in KINDS}


def save(
    model: str, plan: str | PeerConfig, folder: Path, setup: Setup = PLAIN, options: EngineOptions = OPTIONS
) -> State:
    """Train some steps and save; return the state, on worker 0."""
    torch.manual_seed(5)
    shape = build(model)[1]
    images, labels = torch.randn(BATCH, *shape), torch.randint(CLASSES, (BATCH,))
    with setup.applied(), open_world(setup.cluster) as world:
        engine = open_engine(model, plan, world, setup, options)
        for step in range(STEPS):
            engine.train_step(
                images[engine.image_positions], labels[engine.label_positions], step=step, lr=0.1
            )
        saver = Saver(folder, world.rank, world.size, "token", keep=2, best=False)
        pieces = [piece for kind in KINDS for piece in engine.pieces(kind)]
        saver.save(pieces, STEPS, manifest(world.size) if world.rank == 0 else None)
        saved = state_of(engine, world)
        assert saver.complete(succeeded=True) == ""
        if isinstance(engine, Runtime):
            engine.close()
    return saved


def load(
    model: str,
    plan: str | PeerConfig,
    folders: list[Path],
    setup: Setup = PLAIN,
    options: EngineOptions = OPTIONS,
) -> list[State]:
    """Return the states after loading each checkpoint, on worker 0."""
    with setup.applied(), open_world(setup.cluster) as world:
        engine = open_engine(model, plan, world, setup, options)
        states = []
        for folder in folders:
            engine.load(Checkpoint(folder).read)
            world.barrier()
            states.append(state_of(engine, world))
        if isinstance(engine, Runtime):
            engine.close()
    return states
