"""Runs that die and go on from their checkpoints, in real processes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.distributed import TCPStore

from parallel.checkpoints.checkpoint import Checkpoint, whole_checkpoints
from parallel.results.record_files import read_record
from parallel.results.records import Record
from tests.support.commands import Ended, run_module, starting, worker_variables
from tests.support.waiting import wait_for

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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("world", [1, 2])
def test_a_signal_to_one_worker_saves_and_ends_all(tmp_path: Path, world: int, number: int) -> None:
    """The others hear of it through the store, and all stop after the same step."""
    folder = tmp_path / "run"
    arguments = ("strategy=data_parallel", "trainer.epochs=400", "trainer.checkpoint.every=400 epochs")
    if world == 1:
        arguments = ("strategy=single", *arguments[1:])
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with starting(tmp_path) as begin:
        ranks = [
            begin(
                ALTERED,
                *RUN,
                f"hydra.run.dir={folder}",
                *arguments,
                environment={} if world == 1 else worker_variables(rank, world, store.port),
            )
            for rank in range(world)
        ]
        part = folder / "epochs.csv.part"
        wait_for(lambda: part.exists() and part.read_text().count("\n") > 2, 60.0)
        ranks[-1].send_signal(number)
        outputs = [rank.communicate(timeout=60.0) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [143] * world, outputs
    (path,) = whole_checkpoints(folder / "checkpoints")
    said = "".join(err for _, err in outputs)
    assert said == (
        f"stopped by a signal after step {Checkpoint(path).step}: the same command with "
        f"hydra.run.dir={folder} goes on\n"
    )
    assert not (folder / "record.json").exists()
    done = Checkpoint(path).manifest.epochs[-1].epoch
    for name in ("run", "other"):
        changed = ("strategy=single", f"trainer.epochs={done + 1}")
        train(tmp_path / f"{name}-2", 1, *changed, f"resume={folder}")
    assert weights(tmp_path / "run-2") == weights(tmp_path / "other-2")
