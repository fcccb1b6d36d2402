"""The state of any engine, saved and loaded by any other: bitwise equal."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
import torch
from torch import Tensor

from parallel.checkpoints.checkpoint import Checkpoint, folder_name
from parallel.checkpoints.manifest import Manifest
from parallel.checkpoints.saver import Saver
from parallel.config import ClusterConfig, Ddp, PeerConfig, StrategyConfig
from parallel.graph import trace
from parallel.plans import read_plan
from parallel.program.lowering import lower
from parallel.results.records import Attempt, Epoch, Workload
from parallel.runtime.communication.opening import open_world
from parallel.runtime.communication.world import World
from parallel.runtime.execution.engine import Engine
from parallel.runtime.execution.gathered import gathered
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime
from parallel.runtime.peers import PEERS
from parallel.runtime.peers.engine import PeerEngine
from parallel.runtime.peers.fsdp2 import Fsdp2
from parallel.strategies import DataParallel, ModelParallel, OneWeirdTrick, Single, build_plan
from tests.support.small_models import CLASSES, build, graph_of
from tests.support.workers import Workers

BATCH, STEPS = 12, 2
KINDS = ("weights", "momentum", "buffers")
OPTIONS = EngineOptions(seed=0, momentum=0.9, weight_decay=0.01)
Spec = tuple[int, StrategyConfig]
"""Workers, and the strategy."""
CHAIN: list[Spec] = [
    (1, Single()),
    (3, DataParallel()),
    (2, OneWeirdTrick(scheme="b")),
    (3, ModelParallel(micro_batches=3)),
    (4, ModelParallel(scheme="tensor")),
    (2, Ddp()),
    (3, Fsdp2()),
]
BRANCHING: list[Spec] = [(1, Single()), (3, DataParallel()), (4, ModelParallel(scheme="tensor")), (2, Ddp())]
State = dict[str, dict[str, Tensor]]


def open_engine(model: str, plan: str | PeerConfig, world: World) -> Engine:
    network, shape = build(model)
    if isinstance(plan, PeerConfig):
        return PeerEngine(PEERS[plan.name], plan, network, world, OPTIONS, batch_size=BATCH)
    graph = trace(network, shape)
    return Runtime(lower(graph, read_plan(plan, graph), BATCH), network, world, OPTIONS)


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


def save(model: str, plan: str | PeerConfig, folder: Path) -> State:
    """Train some steps and save; return the state, on worker 0."""
    torch.manual_seed(5)
    shape = build(model)[1]
    images, labels = torch.randn(BATCH, *shape), torch.randint(CLASSES, (BATCH,))
    with open_world(ClusterConfig(device="cpu")) as world:
        engine = open_engine(model, plan, world)
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


def load(model: str, plan: str | PeerConfig, folders: list[Path]) -> list[State]:
    """Return the states after loading each checkpoint, on worker 0."""
    with open_world(ClusterConfig(device="cpu")) as world:
        engine = open_engine(model, plan, world)
        states = []
        for folder in folders:
            engine.load(Checkpoint(folder).read)
            world.barrier()
            states.append(state_of(engine, world))
        if isinstance(engine, Runtime):
            engine.close()
    return states


@pytest.mark.parametrize(("model", "specs"), [("tower", CHAIN), ("residual", BRANCHING)])
def test_every_engine_loads_what_every_other_saved(
    workers: Workers, tmp_path: Path, model: str, specs: list[Spec]
) -> None:
    graph = graph_of(model)
    plans = [
        strategy if isinstance(strategy, PeerConfig) else str(build_plan(graph, n, strategy))
        for n, strategy in specs
    ]
    saved, folders = [], []
    for number, (n, _), plan in zip(count(), specs, plans, strict=False):
        folder = tmp_path / str(number)
        saved.append(workers.run(n, save, model, plan, folder)[0])
        folders.append(folder / folder_name(STEPS))
    network = build(model)[0]
    assert all(state["weights"].keys() == dict(network.named_parameters()).keys() for state in saved)
    for state in saved:
        assert all(
            state["momentum"][name].any() for name in state["momentum"]
        )  # what is compared is not zero
        assert not all(torch.equal(state["weights"][name], p) for name, p in network.named_parameters())
    for (n, _), plan in zip(specs, plans, strict=True):
        for theirs, ours in zip(saved, workers.run(n, load, model, plan, folders)[0], strict=True):
            for kind in KINDS:
                assert theirs[kind].keys() == ours[kind].keys()
                assert all(torch.equal(tensor, ours[kind][name]) for name, tensor in theirs[kind].items())
