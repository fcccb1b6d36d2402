"""Saving during a run, as far as one process can tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from parallel.cli.compose import compose_config
from parallel.runtime.communication.world import World
from parallel.training.checkpointing import Checkpointing
from parallel.training.job import prepare
from parallel.training.resuming import StartPoint, attempts_of


class Apart:
    """Worker 0 of two whose hosts have folders of their own."""

    rank, size, device = 0, 2, torch.device("cpu")

    def barrier(self) -> None:
        pass

    def gather(self, value: Any) -> list[Any]:
        return [value, ("b", False) if isinstance(value, tuple) else value]


def test_a_folder_that_is_not_shared_is_refused_before_the_first_step(tmp_path: Path) -> None:
    job = prepare(compose_config(["data.train_images=64", "data.val_images=32", "workers=1"]), verbose=False)
    attempts = attempts_of(StartPoint(), job)
    with pytest.raises(
        ValueError,
        match=r"is not shared: host b \(worker 1\) does not see what host .* \(worker 0\) writes there",
    ):
        Checkpointing(job, cast(World, Apart()), cast(Any, None), tmp_path, attempts, 10)
    assert list((tmp_path / "checkpoints").iterdir()) == []
