"""Steps replayed from a recording are the steps that run as they are, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from parallel.cli.compose import compose_config
from parallel.config import TrainerConfig
from parallel.graph import trace
from parallel.program.lowering import lower
from parallel.runtime.communication.world import World
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime
from parallel.runtime.execution.step_graph import Recording, open_graph
from parallel.runtime.instrumentation.observe import Observer
from parallel.strategies import DataParallel, ModelParallel, Single, build_plan
from tests.support.gpu import needs_gpu
from tests.support.recorded_graph import RecordedGraph
from tests.support.small_models import CLASSES, MODELS, build

BATCH, STEPS = 6, 5
CPU = torch.device("cpu")
RATES = [0.0625, 0.03125, 0.125, 0.0, 0.09375]
"""A schedule, of numbers that float32 holds exactly."""
WEIGHTS, MOMENTUM, BUFFERS, LOSSES = "weights", "momentum", "buffers", "losses"


def trained(
    model: str,
    recording: Recording | None,
    *,
    micro_batches: int = 1,
    precision: str = "fp64",
    device: torch.device = CPU,
    graphs: bool | None = None,
) -> dict[str, list[Tensor]]:
    """Train with or without a recording; return the state afterwards and all losses."""
    network, shape = build(model)
    graph = trace(network, shape)
    strategy = Single() if micro_batches == 1 else ModelParallel(micro_batches=micro_batches)
    program = lower(graph, build_plan(graph, 1, strategy), BATCH)
    options = EngineOptions(
        seed=3,
        precision=precision,
        momentum=0.9,
        weight_decay=0.01,
        graphs=recording is not None if graphs is None else graphs,
    )
    runtime = Runtime(program, network, World(0, 1, device, "none"), options, recording=recording)
    dtype = torch.float64 if precision == "fp64" else torch.float32
    generator = torch.Generator().manual_seed(0)
    losses, scores = [], []
    for step in range(STEPS):
        images = torch.randn(BATCH, *shape, dtype=dtype, generator=generator).to(device)
        labels = torch.randint(CLASSES, (BATCH,), generator=generator).to(device)
        losses.append(runtime.train_step(images, labels, step=step, lr=RATES[step]))
        scores.append(runtime.evaluate_step(images, labels))
        if step == 1:
            runtime.forget_momentum()  # as after a run's warm-up
    state = {kind: [p.values.clone() for p in runtime.pieces(kind)] for kind in (WEIGHTS, MOMENTUM, BUFFERS)}
    return {**state, LOSSES: losses + scores}


def differing(one: dict[str, list[Tensor]], other: dict[str, list[Tensor]]) -> list[str]:
    """Return the kinds of tensors in which two trainings differ."""
    assert one.keys() == other.keys()
    return [
        kind
        for kind in one
        if not all(torch.equal(a, b) for a, b in zip(one[kind], other[kind], strict=True))
    ]


@pytest.mark.parametrize("model", MODELS)
def test_replayed_steps_equal_steps_that_run_as_they_are(model: str) -> None:
    recording = RecordedGraph()
    replayed, eager = trained(model, recording), trained(model, None)
    assert (recording.warm_ups, recording.captures, recording.replays) == (1, 1, STEPS - 1)
    assert len({loss.item() for loss in eager[LOSSES][:STEPS]}) == STEPS
    assert differing(replayed, eager) == []


def test_micro_batches_and_bf16_are_captured() -> None:
    for model, changes in (("tower", {"micro_batches": 3}), ("residual", {"precision": "bf16"})):
        assert differing(trained(model, RecordedGraph(), **changes), trained(model, None, **changes)) == []  # type: ignore[arg-type]


class BakedKey:
    """Makes the key of the masks a new tensor in every step, as it once was."""

    def __init__(self) -> None:
        self._step = Runtime._step

    def __call__(self, runtime: Runtime, images: Tensor, labels: Tensor, lr: Any) -> Tensor:
        with patch.object(runtime, "_key", torch.tensor(runtime._key.item())):
            return self._step(runtime, images, labels, lr)


class BakedRate(BakedKey):
    """Gives the update the learning rate as the host's number."""

    def __call__(self, runtime: Runtime, images: Tensor, labels: Tensor, lr: Any) -> Tensor:
        return self._step(runtime, images, labels, float(lr))


class NewBatch(BakedKey):
    """Reads the batch from memory of its own."""

    def __call__(self, runtime: Runtime, images: Tensor, labels: Tensor, lr: Any) -> Tensor:
        return self._step(runtime, torch.tensor(images.tolist(), dtype=images.dtype), labels, lr)


@pytest.mark.parametrize("change", [BakedKey, BakedRate, NewBatch])
def test_what_changes_from_step_to_step_may_not_be_recorded(change: Callable[[], Any]) -> None:
    eager, changed = trained("tower", None), change()
    with patch.object(Runtime, "_step", lambda *arguments: changed(*arguments)):
        assert WEIGHTS in differing(trained("tower", RecordedGraph()), eager)


def test_a_returned_loss_stays_as_it_is() -> None:
    losses = trained("tower", RecordedGraph())[LOSSES][:STEPS]
    assert len({loss.data_ptr() for loss in losses}) == len({loss.item() for loss in losses}) == STEPS


def test_a_batch_of_another_shape_is_refused() -> None:
    network, shape = build("tower")
    graph = trace(network, shape)
    program = lower(graph, build_plan(graph, 1, Single()), BATCH)
    options = EngineOptions(seed=0, graphs=True)
    runtime = Runtime(program, network, World(0, 1, CPU, "none"), options, recording=RecordedGraph())
    runtime.train_step(torch.zeros(BATCH, *shape), torch.zeros(BATCH).long(), step=0, lr=0.1)
    with pytest.raises(ValueError, match=r"images of shape \(4, 3, 17, 17\) .* do not fit the step"):
        runtime.train_step(torch.zeros(4, *shape), torch.zeros(4).long(), step=1, lr=0.1)


def test_what_cannot_be_captured_is_refused_in_one_sentence() -> None:
    network, shape = build("tower")
    graph = trace(network, shape)
    two = lower(graph, build_plan(graph, 2, DataParallel()), BATCH)
    one = lower(graph, build_plan(graph, 1, Single()), BATCH)
    with pytest.raises(ValueError, match="trainer.graphs=True captures steps without messages, .* 2 workers"):
        open_graph(two, torch.device("cuda"))
    world = World(0, 1, CPU, "none")
    with pytest.raises(ValueError, match="trainer.graphs=True needs a GPU, and this worker's device is cpu"):
        Runtime(one, network, world, EngineOptions(seed=0, graphs=True))
    with pytest.raises(ValueError, match="graphs=True leaves an observer nothing to see"):
        Runtime(one, network, world, EngineOptions(seed=0, graphs=True), observer=Observer())
    for name, value in (("compile", True), ("check_finite", True), ("trace", 3)):
        with pytest.raises(ValueError, match=f"trainer.graphs=True and trainer.{name}={value} exclude each"):
            TrainerConfig(graphs=True, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match="trainer.graphs=True captures the steps of a plan, and strategy=ddp"
    ):
        compose_config(["trainer.graphs=true", "strategy=ddp"])


@needs_gpu
@pytest.mark.parametrize("model", MODELS)
def test_on_a_gpu_replayed_steps_equal_steps_that_run_as_they_are(model: str) -> None:
    device = torch.device("cuda", 0)
    replayed = trained(model, None, device=device, graphs=True)
    eager = trained(model, None, device=device, graphs=False)
    for kind in eager:
        for one, other in zip(replayed[kind], eager[kind], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
