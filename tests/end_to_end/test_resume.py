"""Runs that die and go on from their checkpoints, in real processes."""

from __future__ import annotations

import functools
import random
import shutil
import signal
from collections.abc import Callable
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
OFTEN = ("trainer.epochs=30", "trainer.checkpoint.every=2 steps")
LONG = {1: ("strategy=single", *OFTEN), 2: ("strategy=data_parallel", *OFTEN)}
"""Long enough for several kills, by the number of workers."""


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
    newest, *_ = whole_checkpoints(folder / "checkpoints")
    assert Checkpoint(newest).step == step


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
def test_run_that_died_twice_ends_with_the_same_weights(
    tmp_path: Path, world: int, strategy: tuple[str, ...]
) -> None:
    undisturbed, folder = train(tmp_path / "undisturbed", world, *strategy), tmp_path / "run"
    die(folder, world, 3, *strategy)  # within an epoch
    die(folder, world, 10, *strategy)  # between two
    record = train(folder, world, *strategy)
    assert weights(folder) == weights(tmp_path / "undisturbed")
    assert [attempt.step for attempt in record.attempts] == [0, 3, 10] and record.restarts == 2
    assert record.lost_s > 0
    assert [epoch.timed for epoch in record.epochs] == [False, True, True]
    for ours, theirs in zip(record.epochs, undisturbed.epochs, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-6)
        assert ours.val_loss == theirs.val_loss and ours.bytes_sent == theirs.bytes_sent


@pytest.mark.parametrize(("world", "number"), [(1, signal.SIGUSR1), (2, signal.SIGTERM)])
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
        record = train(tmp_path / f"{name}-2", 1, *changed, f"resume={folder}")
        # What the other run trained counts in this one's losses, not in its times.
        assert [epoch.timed for epoch in record.epochs[:done]] == [False] * done
    assert weights(tmp_path / "run-2") == weights(tmp_path / "other-2")


def test_what_cannot_be_continued_is_refused_with_what_differs(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    train(whole, 1, "strategy=single")
    (checkpoint,) = whole_checkpoints(whole / "checkpoints")
    died = tmp_path / "died"
    died.mkdir()
    shutil.copytree(whole / "checkpoints", died / "checkpoints")

    def refused(folder: Path, *arguments: str) -> str:
        ended = start(folder, 1, "strategy=single", *arguments)
        assert ended.codes == [2]
        assert ended.err.startswith("error: ") and ended.err.count("\n") == 1
        return ended.err

    said = refused(died, "trainer.lr=0.5")
    assert (
        "trainer.lr=0.002 and not 0.5" in said and f"resume={died / 'checkpoints' / checkpoint.name}" in said
    )
    said = refused(tmp_path / "a", "data.train_images=48", "trainer.precision=fp64", f"resume={whole}")
    assert "train_images=40 and not 48, precision=fp32 and not fp64" in said
    assert "must be auto, never, a checkpoint" in refused(tmp_path / "b", f"resume={tmp_path}")
    assert "choose another folder" in refused(died, f"resume={whole}")
    assert "contains a finished run" in refused(whole)
    assert "trainer.epochs=2 must be at least 3" in refused(
        tmp_path / "c", f"resume={whole}", "trainer.epochs=2"
    )


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "run"
    train(undisturbed, 1, "strategy=single")
    die(folder, 1, 5, "strategy=single")
    newer = tmp_path / "newer"
    die(newer, 1, 7, "strategy=single")
    shutil.copytree(newer / "checkpoints/step-00000007", folder / "checkpoints/step-00000007")
    damaged = folder / "checkpoints/step-00000007/worker-0.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    shutil.copytree(folder, tmp_path / "alone")
    shutil.rmtree(tmp_path / "alone/checkpoints/step-00000005")
    alone = start(tmp_path / "alone", 1, "strategy=single")
    assert alone.codes == [2] and "has no whole checkpoint: resume=never begins again" in alone.err
    ended = start(folder, 1, "strategy=single")
    assert ended.codes == [0]
    assert ended.err == (
        f"warning: {damaged}: altered: its checksum is not the one in checkpoint.json; "
        f"{folder / 'checkpoints/step-00000005'} is used instead\n"
    )
    assert weights(folder) == weights(undisturbed)
    assert [attempt.step for attempt in read_record(folder).attempts] == [0, 5]


def test_the_time_of_copies_is_recorded_with_the_next_epoch(tmp_path: Path) -> None:
    first, second, *others = [
        epoch.checkpoint_s for epoch in train(tmp_path / "run", 1, "strategy=single").epochs
    ]
    assert first == 0 and second is not None and second > 0
    # A checkpoint is left out while the one before is still being written.
    assert others and all(seconds is not None and seconds >= 0 for seconds in others)


def test_never_begins_again_and_removes_the_checkpoints(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    die(folder, 1, 10, "strategy=single")
    record = train(folder, 1, "strategy=single", "resume=never", "trainer.checkpoint.every=never")
    assert [attempt.step for attempt in record.attempts] == [0]
    assert all(epoch.timed for epoch in record.epochs)
    assert not (folder / "checkpoints").exists() and (folder / "model.safetensors").exists()


@pytest.fixture(scope="module")
def long_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, bytes]]:
    """Return the weights of an undisturbed LONG run without checkpoints, by the number of workers."""

    @functools.cache
    def weights_of(world: int) -> dict[str, bytes]:
        folder = tmp_path_factory.mktemp("long") / "undisturbed"
        train(folder, world, *LONG[world], "trainer.checkpoint.every=never")
        return weights(folder)

    return weights_of


@pytest.mark.parametrize(
    ("world", "kills"),
    [
        (1, [(signal.SIGKILL, 0, True), (signal.SIGINT, 0, False), (signal.SIGKILL, 0, False)]),
        (2, [(signal.SIGKILL, 1, True), (signal.SIGTERM, 0, True), (signal.SIGKILL, 0, False)]),
    ],
)
def test_a_short_storm_changes_no_bit(
    tmp_path: Path,
    world: int,
    kills: list[tuple[signal.Signals, int, bool]],
    long_runs: Callable[[int], dict[str, bytes]],
) -> None:
    """`scripts/storm.py` does this with real launchers, sweeps, and larger networks."""
    folder, chance = tmp_path / "run", random.Random(world)
    for number, victim, saving in kills:
        storm = {
            "ALTER": "storm",
            "VICTIM": str(victim),
            "SIGNAL": str(int(number)),
            "DELAY": str(chance.uniform(0.0, 0.1)),
        }
        if saving:
            storm["SAVING"] = "1"
        arguments = (*RUN, f"hydra.run.dir={folder}", *LONG[world], "cluster.timeout_s=5")
        ended = run_module(world, ALTERED, *arguments, folder=tmp_path, environment=storm)
        assert any(ended.codes), "it finished before the signal"
        assert "altered" not in ended.err and "truncated" not in ended.err
        for path in whole_checkpoints(folder / "checkpoints"):
            Checkpoint(path).check()
    record = train(folder, world, *LONG[world])
    assert 0 < record.restarts <= len(kills)  # a run that dies before it opened its folder is no start
    assert weights(folder) == long_runs(world)


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


def test_torchrun_starts_the_workers_again_and_they_go_on(
    tmp_path: Path, long_runs: Callable[[int], dict[str, bytes]]
) -> None:
    """In the same folder, whose name has the time of the first start, without being told."""
    storm = {
        "ALTER": "storm",
        "VICTIM": "1",
        "SIGNAL": str(int(signal.SIGKILL)),
        "DELAY": "0.1",
        "SAVING": "1",
    }
    torchrun = ("parallel.torchrun", "--nproc-per-node=2", "--max-restarts=1", "-m", ALTERED)
    with starting(tmp_path) as begin:
        process = begin(*torchrun, *RUN, *LONG[2], environment=storm)
        _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "error: worker 0 ends in" in err and "worker 1 is gone" in err
    (folder,) = (tmp_path / "runs").iterdir()
    record = read_record(folder)
    assert record.restarts == 1 and len(record.attempts) == 2
    assert weights(folder) == long_runs(2)
