"""Runs that die and go on from their checkpoints, in real processes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from parallel.checkpoints.checkpoint import Checkpoint, whole_checkpoints
from parallel.results.record_files import read_record
from parallel.results.records import Record
from tests.support.commands import Ended, run_module

ALTERED = "tests.support.altered_training"
RUN = (
    "model=small",
    "data.train_images=40",
    "data.val_images=12",
    "trainer.batch_size=8",
    "trainer.epochs=3",
    "tracker=none",
)
STEPS = 15


def start(folder: Path, world: int, *arguments: str, die_after: int | None = None) -> Ended:
    alter = {} if die_after is None else {"ALTER": "die", "DIE_AFTER": str(die_after)}
    return run_module(
        world, ALTERED, *RUN, f"hydra.run.dir={folder}", *arguments, folder=folder.parent, environment=alter
    )


def train(folder: Path, world: int, *arguments: str) -> Record:
    ended = start(folder, world, *arguments)
    assert ended.codes == [0] * world, ended.err
    assert ended.err == ""
    return read_record(folder)


def die(folder: Path, world: int, step: int, *arguments: str) -> None:
    """Train until the checkpoint after `step` steps is whole, and then kill all workers."""
    ended = start(folder, world, *arguments, f"trainer.checkpoint.every={step} steps", die_after=step)
    assert ended.codes == [-signal.SIGKILL] * world, ended.err
    assert [Checkpoint(path).step for path in whole_checkpoints(folder / "checkpoints")] == [step]


def weights(folder: Path) -> dict[str, bytes]:
    """Return the bits of a finished run's weights."""
    return {name: t.numpy().tobytes() for name, t in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize(
    ("world", "strategy"),
    [
        (1, ("strategy=single",)),
        (2, ("strategy=data_parallel",)),
        (2, ("strategy=one_weird_trick", "strategy.scheme=b")),
        (2, ("strategy=ddp",)),
    ],
    ids=["single", "data parallel", "one weird trick b", "ddp"],
)
def test_run_that_died_ends_with_the_same_weights(
    tmp_path: Path, world: int, strategy: tuple[str, ...]
) -> None:
    undisturbed = train(tmp_path / "undisturbed", world, *strategy)
    for step in (3, 10):  # within an epoch, between two
        folder = tmp_path / str(step)
        die(folder, world, step, *strategy)
        record = train(folder, world, *strategy)
        assert weights(folder) == weights(tmp_path / "undisturbed")
        assert [attempt.step for attempt in record.attempts] == [0, step]
        assert [epoch.timed for epoch in record.epochs] == [step != 3, True, True]
        for ours, theirs in zip(record.epochs, undisturbed.epochs, strict=True):
            assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-6)
            assert ours.val_loss == theirs.val_loss and ours.bytes_sent == theirs.bytes_sent


def test_run_is_finished_although_its_weights_cannot_be_written(tmp_path: Path) -> None:
    in_the_way = tmp_path / "run" / "model.safetensors"
    (in_the_way / "folder").mkdir(parents=True)
    ended = start(tmp_path / "run", 1)
    assert ended.codes == [0]
    sentence = f"warning: {in_the_way} was not written: "
    assert ended.err.startswith(sentence) and len(ended.err.splitlines()) == 1
    assert len(read_record(tmp_path / "run").epochs) == 3
    assert list((tmp_path / "run").glob("*.tmp")) == []
    assert len(whole_checkpoints(tmp_path / "run" / "checkpoints")) == 1
