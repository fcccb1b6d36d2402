"""Other tools train what `single` trains: losses, evaluation, weights, momentum."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest
import torch
from torch import Tensor

from parallel.cli.application import fit_world
from parallel.cli.compose import compose_config
from parallel.config import ClusterConfig, Ddp, PeerConfig
from parallel.config.peer import OURS
from parallel.graph import trace
from parallel.prediction.engines import replicated
from parallel.program.lowering import lower
from parallel.runtime.communication.opening import open_world
from parallel.runtime.communication.world import World
from parallel.runtime.execution.engine import Engine
from parallel.runtime.execution.gathered import gathered
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime
from parallel.runtime.peers import PEERS
from parallel.runtime.peers.engine import PeerEngine
from parallel.strategies import Single, build_plan
from tests.support.made_clusters import made_cluster
from tests.support.small_models import CLASSES, build
from tests.support.workers import Workers

BATCH, STEPS = 12, 4
TOLERANCE = {"fp64": 1e-12, "fp32": 1e-5}
OPTIONS = EngineOptions(seed=3, momentum=0.9, weight_decay=0.01)
ALONE = World(0, 1, torch.device("cpu"), "none")
Trained = tuple[list[float], list[float], dict[str, dict[str, Tensor]]]


def installed(name: str) -> bool:
    return all(importlib.util.find_spec(module) for module in PEERS[name].options.packages)


def trained(engine: Engine, world: World, dtype: torch.dtype) -> Trained:
    """Return the losses of some steps, the metrics of an evaluation, and the state, on worker 0."""
    generator = torch.Generator().manual_seed(5)
    shape = build("tower")[1]
    losses = []
    for step in range(STEPS):
        images = torch.randn(BATCH, *shape, generator=generator).to(dtype)
        labels = torch.randint(CLASSES, (BATCH,), generator=generator)
        own = images[engine.image_positions], labels[engine.label_positions]
        losses.append(world.sum(engine.train_step(*own, step=step, lr=0.05)).item())
        if step == 0:  # as after warm-up
            engine.forget_momentum()
    scores = world.sum(engine.evaluate_step(*own)).tolist()
    return losses, scores, {kind: gathered(engine, kind, world) for kind in ("weights", "momentum")}


def by_single(precision: str) -> Trained:
    network, shape = build("tower")
    graph = trace(network, shape)
    program = lower(graph, build_plan(graph, 1, Single()), BATCH)
    engine = Runtime(program, network, ALONE, dataclasses.replace(OPTIONS, precision=precision))
    return trained(engine, ALONE, torch.float64 if precision == "fp64" else torch.float32)


def by_peer(config: PeerConfig, precision: str) -> Trained:
    with open_world(ClusterConfig(device="cpu")) as world:
        options = dataclasses.replace(OPTIONS, precision=precision)
        network = build("tower")[0]
        engine = PeerEngine(PEERS[config.name], config, network, world, options, batch_size=BATCH)
        return trained(engine, world, torch.float64 if precision == "fp64" else torch.float32)


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_trains_what_single_trains(workers: Workers, name: str) -> None:
    if not installed(name):
        pytest.skip(f"strategy={name} needs packages: pip install -e '.[peers]'")
    precision = "fp32" if name == "deepspeed" else "fp64"
    expected = by_single(precision)
    found = workers.run(2, by_peer, dataclasses.replace(PEERS[name].options, dropout=OURS), precision)[0]
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        assert ours == pytest.approx(theirs, rel=TOLERANCE[precision])
    for kind, tensors in expected[2].items():
        assert tensors.keys() == found[2][kind].keys()
        for key, tensor in tensors.items():
            assert tensor.any()  # what is compared is not zero
            torch.testing.assert_close(
                found[2][kind][key], tensor, rtol=TOLERANCE[precision], atol=TOLERANCE[precision]
            )


def one_step(dropout: str, step: int, before: int = 0) -> float:
    """Return the loss of a step on one worker, after some random numbers that others drew."""
    network, shape = build("tower")
    engine = PeerEngine(PEERS["ddp"], Ddp(dropout=dropout), network, ALONE, OPTIONS, batch_size=BATCH)
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(BATCH, *shape, generator=generator)
    torch.rand(before)
    return engine.train_step(images, torch.zeros(BATCH, dtype=torch.int64), step=step, lr=0.1).item()


def test_stock_dropout_depends_on_the_step_alone() -> None:
    assert one_step("stock", 7) == one_step("stock", 7, before=3)
    assert len({one_step("stock", 7), one_step("stock", 8), one_step("ours", 7)}) == 3


def test_stock_dropout_is_the_default() -> None:
    assert {peer.options.dropout for peer in PEERS.values()} == {"stock"}
    assert compose_config(["strategy=ddp"]).strategy.full_label(None) == "ddp"
    ours = compose_config(["strategy=ddp", "strategy.dropout=ours"]).strategy
    assert ours.full_label(None) == "ddp dropout=ours"


@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if peer.options.packages])
def test_a_missing_package_is_named_before_any_worker_starts(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose_config([f"strategy={name}", "workers=2"])
    (pip,) = config.strategy.packages.values()  # type: ignore[attr-defined]
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(ValueError, match=f"strategy={name} needs the package {pip}, .* `pip install {pip}`"):
        fit_world(config, 2, launched=True)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["strategy=fsdp2", "trainer.compile=true"], "trainer.compile=True must be false for strategy=fsdp2"),
        (["strategy=deepspeed", "strategy.stage=3"], "strategy.stage=3 must be 1 or 2"),
        (["strategy=deepspeed", "trainer.precision=fp64"], "trainer.precision=fp64 must be fp32 or bf16"),
        (["strategy=fabric", "strategy.dropout=none"], "strategy.dropout=none is not known"),
    ],
)
def test_what_peers_refuse(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        compose_config(overrides)


def test_tools_that_wrap_ddp_have_its_cost_model() -> None:
    ddp, fabric, accelerate = (
        replicated(compose_config([f"strategy={name}", "workers=2"]), made_cluster())
        for name in ("ddp", "fabric", "accelerate")
    )
    assert fabric == accelerate == ddp
    assert ddp.bucket_bytes == 25 * 2**20 and ddp.first_bucket_bytes == 2**20
    sized = compose_config(["strategy=ddp", "workers=2", "strategy.bucket_mb=10"])
    assert replicated(sized, made_cluster()) == dataclasses.replace(
        ddp, bucket_bytes=10 * 2**20, first_bucket_bytes=None
    )
    for name in ("fsdp2", "deepspeed"):
        with pytest.raises(ValueError, match=f"^strategy={name} has no cost model"):
            replicated(compose_config([f"strategy={name}", "workers=2"]), made_cluster())
