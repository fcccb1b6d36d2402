"""The state of any engine, saved and loaded by any other: bitwise equal."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
import torch

from parallel.checkpoints.checkpoint import folder_name
from parallel.config import Ddp, PeerConfig, StrategyConfig
from parallel.runtime.peers.fsdp2 import Fsdp2
from parallel.strategies import DataParallel, ModelParallel, OneWeirdTrick, Single, build_plan
from tests.support.saved_states import KINDS, STEPS, load, save
from tests.support.small_models import build, graph_of
from tests.support.workers import Workers

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
