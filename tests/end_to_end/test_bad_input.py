"""Invalid input gives one sentence and exit code 2, with any number of ranks.

The real entry points run up to where training would begin, in the processes of
`tests/support/commands.py`.
"""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.support.commands import Ended, run_module
from tests.support.made_records import made_record

PLAN = "workers: 1\nops:\n  conv1: {on: [0]}\n"
SMALL = [
    "model=small",
    "tracker=none",
    "trainer.epochs=1",
    "data.train_images=16",
    "data.val_images=8",
    "trainer.batch_size=8",
]


def check(ended: Ended, folder: Path, *words: str) -> None:
    """Check for exactly one line, with `words` in it, exit code 2 on every rank, and no record."""
    assert set(ended.codes) == {2}, ended
    assert len(ended.err.splitlines()) == 1 and ended.err.startswith("error: "), ended.err
    for word in words:
        assert word in ended.err
    assert list(folder.rglob("record.json")) == []


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            ["strategy=one_weird_trick", "strategy.scheme=c", "trainer.batch_size=3"],
            ["trainer.batch_size=3 must be a multiple of the plan's micro_batches=2"],
        ),
        (
            ["strategy=one_weird_trick", "strategy.scheme=b", "trainer.batch_size=2"],
            [
                "trainer.batch_size=2 is too small: ",
                "is split in n into 2 parts of 1 samples (1 of 2 micro-batches)",
            ],
        ),
        (
            ["strategy=model_parallel", "strategy.micro_batches=3"],
            ["trainer.batch_size=8 must be a multiple of the plan's micro_batches=3"],
        ),
        (
            ["strategy=data_parallel", "trainer.batch_size=1"],
            ["trainer.batch_size=1 is too small: conv1 is split in n into 2 parts of 1 samples"],
        ),
        (["strategy=ddp", "trainer.batch_size=3"], ["trainer.batch_size=3 must be a multiple of workers=2"]),
        (
            ["strategy=data_parallel", "trainer.batch_size=32"],
            ["trainer.batch_size=32 is more than the 16 training images"],
        ),
        (["strategy=single"], ["strategy=single needs 1 process, but torchrun started 2"]),
        (["strategy=ddp", "workers=3"], ["workers=3 needs 3 processes, but torchrun started 2"]),
        (
            ["strategy=one_weird_trick", "strategy.scheme=d"],
            ["strategy.scheme=d is not known; it must be one of a, b, c"],
        ),
        (
            ["strategy=ddp", "model.num_classes=7"],
            ["model.num_classes=7 does not fit the data set, which has 10 classes"],
        ),
        (
            ["strategy=ddp", "data=tiny_imagenet", "data.root=nowhere"],
            ["data.root=nowhere is not a folder", "wnids.txt"],
        ),
    ],
)
def test_two_ranks_refuse_once(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    check(run_module(2, "parallel.train", *SMALL, *arguments, folder=tmp_path), tmp_path, *words)


@pytest.mark.parametrize(
    "plan, words",
    [
        (None, ["strategy.path=plan.yaml is not a file"]),
        (
            PLAN.replace("workers: 1", "workers: 3"),
            ["plan.yaml: workers=1 does not fit the plan, which is for 3"],
        ),
        ("ops: [", ["plan.yaml: the plan is not valid YAML"]),
        ("\x00", ["plan.yaml: "]),
    ],
)
def test_plan_files(plan: str | None, words: list[str], tmp_path: Path) -> None:
    """`tests/unit/test_plan.py` has the other sentences."""
    if plan is not None:
        (tmp_path / "plan.yaml").write_text(plan)
    ended = run_module(
        1, "parallel.train", *SMALL, "strategy=from_file", "strategy.path=plan.yaml", folder=tmp_path
    )
    check(ended, tmp_path, *words)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["data=imagenet"], ["data.root=None must be the folder of data=imagenet: train/<wnid>/*.JPEG"]),
        (
            ["data=dogs_vs_cats", "data.root=empty"],
            ["data.root=empty is an empty folder; looked for train/cat.N.jpg"],
        ),
        (
            ["data=imagenet", "data.root=cats"],
            ["data.root=cats has another layout", "it looks like data=dogs_vs_cats"],
        ),
        (
            ["data=dogs_vs_cats", "data.root=cats", "data.train_images=null"],
            ["data.root=cats/train holds too many broken images"],
        ),
        (["strategy=nope"], ["strategy=nope is not known; it must be one of accelerate, data_parallel, ddp"]),
        (["trainer.batchsize=3"], ["trainer.batchsize is not a known key", "batch_size"]),
        (["trainer.batch_size=many"], ["trainer.batch_size: ", "'many'"]),
        (["data=nope"], ["data=nope is not known; it must be one of digits"]),
        (["model.image_size=16"], ["model.image_size=16 is too small"]),
        (
            ["trainer.precision=fp16"],
            ["trainer.precision=fp16 is not known; it must be one of fp32, tf32, bf16, fp64"],
        ),
        (["hydra.run.dir=file"], ["hydra.run.dir=", "file cannot be created"]),
        (["hydra.run.dir=/sys/kernel"], ["hydra.run.dir=/sys/kernel can't be written: "]),
        (
            ["strategy=ddp", "workers=2"],
            [
                "workers=2 needs 2 processes",
                "python -m parallel.torchrun --nproc-per-node 2 -m parallel.train",
            ],
        ),
    ],
)
def test_plain_python(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "cats" / "train").mkdir(parents=True)
    for index in range(12):
        (tmp_path / "cats" / "train" / f"{('cat', 'dog')[index % 2]}.{index}.jpg").write_bytes(
            b"not an image"
        )
    check(run_module(1, "parallel.train", *SMALL, *arguments, folder=tmp_path), tmp_path, *words)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["cluster.backend=nccl"], ["cluster.backend=nccl needs GPUs, and torch sees none", "; use gloo"]),
        (["cluster.device=cuda"], ["cluster.device=cuda needs a GPU, and torch sees none", "; use cpu"]),
        (["cluster.share_gpu=true"], ["cluster.share_gpu=true needs a GPU, and torch sees none"]),
        (["cluster.backend=nccl", "cluster.device=cpu"], ["cluster.backend=nccl moves tensors of GPUs"]),
    ],
)
def test_no_gpu(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    check(run_module(2, "parallel.train", "strategy=ddp", *arguments, folder=tmp_path), tmp_path, *words)


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = run_module(
            1,
            "parallel.train",
            "strategy=ddp",
            folder=tmp_path,
            environment={"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
        )
    check(ended, tmp_path, f"port {port} of 127.0.0.1 is in use by another program", "MASTER_PORT")


@pytest.mark.parametrize("keep", [0, 1, 200, -2])
def test_a_truncated_record(keep: int, tmp_path: Path) -> None:
    from parallel.results.record_files import write_record

    write_record(tmp_path / "runs" / "one", made_record("single", (10.0, 10.0)))
    path = tmp_path / "runs" / "one" / "record.json"
    path.write_text(path.read_text()[:keep])
    ended = run_module(1, "parallel.compare", "runs", folder=tmp_path)
    assert ended.codes == [2] and len(ended.err.splitlines()) == 1
    assert "record.json is truncated or not JSON" in ended.err and list(tmp_path.rglob("report.html")) == []
