"""Runs evaluated again from their weights on disk, in real processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from parallel.checkpoints.checkpoint import whole_checkpoints
from parallel.results.formatting import percent
from parallel.results.record_files import read_record
from parallel.results.records import Epoch
from tests.support.commands import Ended, run_module
from tests.support.workers import Workers

RUN = (
    "model=small",
    "data.train_images=40",
    "data.val_images=60",
    "trainer.batch_size=8",
    "trainer.epochs=2",
    "trainer.lr=0.02",
    "tracker=none",
)
STRATEGIES = {
    "single": (1, ("strategy=single",)),
    "data_parallel": (2, ("strategy=data_parallel",)),
    "one_weird_trick": (2, ("strategy=one_weird_trick", "strategy.scheme=b")),
    "model_parallel": (2, ("strategy=model_parallel", "strategy.micro_batches=2")),
    "ddp": (2, ("strategy=ddp",)),
}


def train(folder: Path, world: int, *arguments: str) -> None:
    ended = run_module(
        world, "parallel.train", *RUN, f"hydra.run.dir={folder}", *arguments, folder=folder.parent
    )
    assert ended.codes == [0] * world and ended.err == "", ended.err


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of every strategy."""
    folder = tmp_path_factory.mktemp("runs")
    for name, (world, arguments) in STRATEGIES.items():
        train(folder / name, world, *arguments)
    return folder


def evaluate(world: int, *arguments: str | Path, folder: Path) -> Ended:
    return run_module(world, "parallel.evaluate", *map(str, arguments), folder=folder)


def cells(line: str) -> list[str]:
    """Return the loss and the accuracies in a line of the table."""
    return line.replace(" %", "%").split()[-3:]


def check(ended: Ended, epoch: Epoch) -> None:
    """Check that the command printed the numbers of an epoch, twice: as now, and as the run's."""
    assert set(ended.codes) == {0} and ended.err == "", ended.err
    *_, now, before = ended.out.splitlines()
    expected = [f"{epoch.val_loss:.4f}", percent(epoch.val_top1), percent(epoch.val_top5)]
    assert cells(now) == cells(before) == [text.replace(" %", "%") for text in expected], ended.out
    assert now.startswith("now") and before.startswith(f"after epoch {epoch.epoch}")


def refused(ended: Ended, *words: str) -> None:
    """Check for one sentence with `words`, and exit code 2."""
    assert set(ended.codes) == {2}, ended
    assert ended.out == "" and len(ended.err.splitlines()) == 1 and ended.err.startswith("error: "), ended
    for word in words:
        assert word in ended.err, ended.err


@pytest.mark.parametrize(
    ("trained", "evaluated"),
    [
        ("single", "data_parallel"),
        ("data_parallel", "one_weird_trick"),
        ("one_weird_trick", "model_parallel"),
        ("model_parallel", "ddp"),
        ("ddp", "single"),
    ],
)
def test_other_strategies_give_the_numbers_of_the_last_epoch(
    runs: Path, tmp_path: Path, trained: str, evaluated: str
) -> None:
    world, arguments = STRATEGIES[evaluated]
    epoch = read_record(runs / trained).epochs[-1]
    assert epoch.val_top1 and epoch.val_top5 != epoch.val_top1  # what is compared is not trivial
    check(evaluate(world, runs / trained, *arguments, folder=tmp_path), epoch)


@pytest.mark.parametrize("world", [1, 2])
def test_the_strategy_follows_the_workers(runs: Path, tmp_path: Path, world: int) -> None:
    ended = evaluate(world, runs / "one_weird_trick", folder=tmp_path)
    check(ended, read_record(runs / "one_weird_trick").epochs[-1])
    label = {1: "single, 1 worker,", 2: "data_parallel, 2 workers,"}[world]
    assert label in ended.out


def in_workers(arguments: list[str]) -> tuple[float, float, float]:
    """Return the scores that the command computes, with all their digits."""
    import os

    from parallel.cli.stored import evaluation_config
    from parallel.training.evaluation import evaluate
    from parallel.training.job import prepare
    from parallel.training.saved_weights import find_weights, open_weights

    run, *overrides = arguments
    weights = open_weights(find_weights(Path(run)))
    world = int(os.environ["WORLD_SIZE"])
    overrides = [*overrides, f"workers={world}"]
    config = evaluation_config(weights.described_in, weights.config, overrides, world)
    scores = evaluate(prepare(config, verbose=False), weights)
    return scores.loss, scores.top1, scores.top5


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_plan_of_the_run_gives_the_same_bits(runs: Path, workers: Workers, name: str) -> None:
    world, arguments = STRATEGIES[name]
    epoch = read_record(runs / name).epochs[-1]
    for scores in workers.run(world, in_workers, [str(runs / name), *arguments]):
        assert scores == (epoch.val_loss, epoch.val_top1, epoch.val_top5)


def test_what_may_be_named(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "strategy=single"  # as in a sweep: the first argument is no override
    shutil.copytree(runs / "single", run)
    epoch = read_record(run).epochs[-1]
    (checkpoint,) = whole_checkpoints(run / "checkpoints")
    for path in (run, checkpoint, checkpoint / "checkpoint.json", run / "model.safetensors"):
        ended = evaluate(1, path, folder=tmp_path)
        check(ended, epoch)
        assert ended.out.startswith(
            str(run / "model.safetensors" if path.suffix == ".safetensors" else checkpoint)
        )
    shutil.rmtree(run / "checkpoints")
    ended = evaluate(1, "strategy=single", "trainer.batch_size=60", folder=tmp_path)
    check(ended, epoch)
    assert ended.out.startswith("strategy=single/model.safetensors")


def test_a_damaged_checkpoint_is_passed_over(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "single", run)
    (checkpoint,) = whole_checkpoints(run / "checkpoints")
    file = checkpoint / "worker-0.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    ended = evaluate(1, run, folder=tmp_path)
    assert ended.codes == [0] and len(ended.err.splitlines()) == 1
    assert (
        ended.err.startswith(f"warning: {file}: altered") and "model.safetensors is used instead" in ended.err
    )
    (run / "model.safetensors").unlink()
    refused(evaluate(1, run, folder=tmp_path), "has no weights", "altered")
    refused(evaluate(1, checkpoint, folder=tmp_path), "altered")


def test_a_run_that_stopped_within_an_epoch(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = run_module(
        1,
        "tests.support.altered_training",
        *RUN,
        f"hydra.run.dir={run}",
        "trainer.checkpoint.every=3 steps",
        folder=tmp_path,
        environment={"ALTER": "die", "DIE_AFTER": "3"},
    )
    assert not (run / "record.json").exists(), ended
    ended = evaluate(1, run, folder=tmp_path)
    assert ended.codes == [0] and ended.err == ""
    assert "step-00000003" in ended.out and "after epoch" not in ended.out


def other_file(runs: Path, folder: Path, change: str) -> Path:
    """Return a copy of a run whose model.safetensors was changed."""
    run = folder / "run"
    run.mkdir()
    for name in ("record.json", "epochs.csv"):
        shutil.copy(runs / "single" / name, run)
    tensors = load_file(runs / "single" / "model.safetensors")
    if change == "missing":
        del tensors["fc4.bias"]
    elif change == "unknown":
        tensors["fc9.weight"] = tensors["fc4.weight"].clone()
    elif change == "shape":
        tensors["fc4.weight"] = tensors["fc4.weight"][:7].clone()
    save_file(tensors, run / "model.safetensors")
    if change == "cut":
        (run / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-3])
    return run


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("missing", "does not fit model=small with 10 classes: it lacks fc4.bias"),
        ("unknown", "does not fit model=small with 10 classes, which has no fc9.weight"),
        ("shape", "fc4.weight has the shape [7, 64] and not [10, 64]"),
        ("cut", "model.safetensors: is not a file of tensors: "),
    ],
)
def test_weights_of_another_model(runs: Path, tmp_path: Path, change: str, words: str) -> None:
    refused(evaluate(1, other_file(runs, tmp_path, change), folder=tmp_path), "model.safetensors", words)


@pytest.mark.parametrize(
    ("world", "arguments", "words"),
    [
        (1, (), "RUN=None must be a run directory, a checkpoint or a .safetensors file"),
        (1, ("nowhere",), "nowhere does not exist: give a run directory"),
        (1, ("strategy=single",), "strategy=single does not exist: give a run directory"),
        (1, ("empty",), "empty has no weights: no whole checkpoint and no model.safetensors"),
        (1, ("runs/single", "--fast"), "flag=--fast is not known"),
        (1, ("runs/single", "workers=2", "strategy=ddp"), "--nproc-per-node 2 -m parallel.evaluate …`\n"),
        (1, ("runs/single", "strategy=model_parallel", "workers=3"), "workers=3 needs 3 processes"),
        (2, ("runs/single", "strategy=single"), "strategy=single needs 1 process, but torchrun started 2"),
        (2, ("nowhere",), "nowhere does not exist"),
        (1, ("runs/single", "strategy=best"), "strategy=best is not known"),
        (1, ("runs/single", "trainer.batch_size=0"), "trainer.batch_size=0 must be at least 1"),
        (1, ("runs/single", "experiment=imagenet"), "experiment=imagenet is not possible here"),
        (1, ("runs/single", "data=imagenet", "data.root=nowhere"), "data.root=nowhere is not a folder"),
        (
            1,
            ("runs/single", "model=alexnet"),
            "does not fit model=alexnet owt with 10 classes: conv1.weight has",
        ),
        (
            1,
            ("runs/single", "data=synthetic", "data.num_classes=7"),
            "fc4.weight has the shape [10, 64] and not [7, 64]",
        ),
        (2, ("runs/single", "image.png"), "workers=2 must be 1 to classify single images"),
        (1, ("runs/single", "image.png"), "image.png can't be read: No such file"),
        (1, ("runs/single", "empty"), "empty can't be read: Is a directory"),
        (1, ("runs/single", "broken.png"), "broken.png: its 9 bytes have no known image format"),
    ],
)
def test_invalid_input(
    runs: Path, tmp_path: Path, world: int, arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "runs").symlink_to(runs)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"no image!")
    refused(evaluate(world, *arguments, folder=tmp_path), words)


def test_an_option_that_this_version_does_not_know(runs: Path, tmp_path: Path) -> None:
    run = other_file(runs, tmp_path, "none")
    record = json.loads((run / "record.json").read_text())
    record["config"]["model"]["wings"] = 2
    (run / "record.json").write_text(json.dumps(record))
    refused(evaluate(1, run, folder=tmp_path), "record.json: model.wings=2 does not belong to model=small")


def test_images(runs: Path, tmp_path: Path) -> None:
    """Images of the validation set, written to files, get the run's own classes."""
    from parallel.config import DataConfig
    from parallel.data import open_data

    data = open_data(DataConfig("digits", train_images=40, val_images=60), 20, 0)
    names = []
    for number, pixels in enumerate(data.val.read(np.arange(60))):
        names.append(f"{number}=.png" if number == 3 else f"{number}.png")
        Image.fromarray(pixels).save(tmp_path / names[-1])
    ended = evaluate(1, runs / "single", *names, "trainer.batch_size=16", folder=tmp_path)
    assert ended.codes == [0] and ended.err == "", ended.err
    lines = ended.out.splitlines()
    assert lines[::6] == names
    first = [lines[6 * row + 1].split()[-1] for row in range(60)]
    five = [{lines[6 * row + i].split()[-1] for i in range(1, 6)} for row in range(60)]
    labels = [str(label) for label in data.val.labels]
    epoch = read_record(runs / "single").epochs[-1]
    assert sum(a == b for a, b in zip(first, labels, strict=True)) / 60 == epoch.val_top1
    assert sum(b in five[i] for i, b in enumerate(labels)) / 60 == epoch.val_top5
    shares = [float(line.split()[0]) for line in lines[1:6]]
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) < 100.3
