"""Training in real processes: every strategy in a sweep, torchrun, data sets, settings, interrupted runs."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from parallel.cli.process_tree import MARK, marked
from parallel.results.disturbance import not_trained
from parallel.results.record_files import read_record
from parallel.results.records import Record
from parallel.results.run_lock import locked
from parallel.results.step_timeline import read as read_step
from scripts.write_image_layouts import LAYOUTS, Variety, digit_pictures
from tests.support.commands import Run, Start, run_module, starting
from tests.support.waiting import free_port, wait_for
from tests.support.wandb_files import read_back

TRAIN, ALTERED = "parallel.train", "tests.support.altered_training"
FEW = (
    "model=small",
    "data.train_images=24",
    "data.val_images=12",
    "trainer.batch_size=8",
    "trainer.epochs=1",
)
EXACT = (*FEW, "data.train_images=16", "trainer.epochs=2", "trainer.precision=fp64", "trainer.warmup_steps=1")
STRATEGIES = ("single", "data_parallel", "model_parallel", "one_weird_trick", "ddp")


def only_step(folder: Path) -> Path:
    (path,) = (folder / "runs").rglob("step.json")
    return path


def only_record(folder: Path) -> Record:
    (path,) = (folder / "runs").rglob("record.json")
    return read_record(path)


def trained(
    folder: Path,
    *arguments: str,
    world: int = 1,
    module: str = TRAIN,
    environment: Mapping[str, str] | None = None,
) -> Record:
    """Return the record of a run in forked ranks."""
    ended = run_module(world, module, "tracker=none", *arguments, folder=folder, environment=environment)
    assert ended.codes == [0] * world, ended.err
    assert ended.err == ""
    return only_record(folder)


def curve(record: Record) -> list[float]:
    """Return the values that must not depend on the strategy."""
    values = [
        value
        for epoch in record.epochs
        for value in (epoch.train_loss, epoch.val_loss, epoch.val_top1, epoch.val_top5, epoch.lr)
    ]
    assert all(value is not None and math.isfinite(value) for value in values)
    return [value for value in values if value is not None]


@pytest.mark.slow
def test_digits_reach_90_percent_after_three_epochs(run: Run, tmp_path: Path) -> None:
    done = run(
        TRAIN, "experiment=digits", "strategy=single", "cluster.threads=2", "tracker=none", timeout=1200
    )
    assert done.returncode == 0, done.stderr
    record = only_record(tmp_path)
    accuracy = [epoch.val_top1 or 0.0 for epoch in record.epochs]
    assert len(accuracy) == 3 and accuracy[-1] >= 0.9, accuracy
    assert (record.workload.data, record.workload.train_images, record.workload.image_size) == (
        "digits",
        1438,
        64,
    )
    assert (record.parameters, record.workers, record.threads, record.backend) == (57_044_810, 1, 2, "none")
    assert record.weights_changed is True and record.transport is None and not_trained(record) == ""
    for epoch in record.epochs:
        assert epoch.bytes_sent == 0 and epoch.communication_s == 0 and (epoch.peak_memory_bytes or 0) > 1e9
        parts = (epoch.data_wait_s, epoch.compute_s, epoch.communication_s, epoch.idle_s)
        assert sum(part or 0.0 for part in parts) == pytest.approx(epoch.seconds, rel=0.05)


@dataclasses.dataclass(frozen=True)
class Sweep:
    folder: Path
    command: tuple[str, ...]
    first: CompletedProcess[str]
    records: dict[str, Record]

    @property
    def runs(self) -> Path:
        return self.folder / "runs" / "mine"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweep]:
    """Run every strategy on the same few images, as `make compare` does, but in float64."""
    folder = tmp_path_factory.mktemp("sweep")
    command = (
        TRAIN,
        "-m",
        f"strategy={','.join(STRATEGIES)}",
        "workers=2",
        "hydra/launcher=torchrun",
        "sweep=mine",
        *EXACT,
    )
    with starting(folder) as start:
        process = start(*command)
        out, err = process.communicate(timeout=1800)
    records = {path.parent.name: read_record(path) for path in (folder / "runs").rglob("record.json")}
    yield Sweep(folder, command, CompletedProcess(command, process.returncode, out, err), records)


def test_every_strategy_shows_the_same_loss_curve(sweep: Sweep) -> None:
    assert sweep.first.returncode == 0, sweep.first.stderr
    assert set(sweep.records) == {f"strategy={name}" for name in STRATEGIES}
    expected = curve(sweep.records["strategy=single"])
    for name, record in sweep.records.items():
        if record.strategy != "ddp":  # its dropout is its own
            assert curve(record) == pytest.approx(expected, rel=1e-9), name
        assert record.workers == (1 if record.strategy == "single" else 2)
        assert (record.plan is None) == (record.strategy == "ddp")
        assert record.workload == sweep.records["strategy=single"].workload and record.sweep == "mine"
        assert all((epoch.bytes_sent or 0) > 0 for epoch in record.epochs) == (record.workers > 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ["strategy=one_weird_trick", "strategy.scheme=b"],
        ["strategy=one_weird_trick", "strategy.scheme=c"],
        ["strategy=model_parallel", "strategy.micro_batches=4"],
        ["strategy=model_parallel", "strategy.scheme=tensor"],
        ["strategy=from_file", "strategy.path=plan.yaml"],
        ["strategy=ddp", "strategy.dropout=ours"],
    ],
    ids=" ".join,
)
def test_so_does_every_variant(arguments: list[str], sweep: Sweep, tmp_path: Path) -> None:
    plan = sweep.records["strategy=one_weird_trick"].plan  # what a run records can be run again
    (tmp_path / "plan.yaml").write_text(str(plan))
    record = trained(tmp_path, *EXACT, *arguments, world=2)
    assert curve(record) == pytest.approx(curve(sweep.records["strategy=single"]), rel=1e-9)
    assert arguments[0] != "strategy=from_file" or record.plan == plan


def test_the_sweep_again_skips_all(sweep: Sweep) -> None:
    with starting(sweep.folder) as start:
        out, err = start(*sweep.command).communicate(timeout=600)
    assert f"{len(STRATEGIES)} skipped" in out and "done" not in out, out + err
    assert [path.name for path in (sweep.folder / "runs").iterdir()] == ["mine"]


def test_the_sweep_compares(sweep: Sweep) -> None:
    ended = run_module(1, "parallel.compare", "runs/mine", "--json", "rows.json", folder=sweep.folder)
    assert ended.codes == [0], ended.err
    (comparison,) = json.loads((sweep.folder / "rows.json").read_text())
    rows = {row["strategy"]: row for row in comparison["rows"]}
    assert set(rows) == set(STRATEGIES) and rows["single"]["role"] == "baseline"
    assert len({row["top1"] for row in rows.values()}) == 1
    for name in STRATEGIES[1:]:
        row = rows[name]
        assert row["speedup"] == pytest.approx(rows["single"]["epoch_s"]["median"] / row["epoch_s"]["median"])
        assert row["speedup_low"] is None and row["speedup_high"] is None, (
            "two epochs are too few for an interval"
        )
        assert row["efficiency"] == pytest.approx(row["speedup"] / row["workers"])
    assert "one_weird_trick" in ended.out and "<svg" in (sweep.runs / "report.html").read_text()


def test_the_sweep_is_the_group_of_its_wandb_runs(sweep: Sweep) -> None:
    log = read_back(sweep.runs / "strategy=ddp")
    (run,) = [entry["run"] for entry in log if entry["type"] == "run"]
    assert (run["run_group"], run["job_type"]) == ("mine", "ddp")
    history = [entry["history"]["item"] for entry in log if entry["type"] == "history"]
    assert [item["train/loss"] for item in history] == [
        e.train_loss for e in sweep.records["strategy=ddp"].epochs
    ]
    summary = {
        key: value
        for entry in log
        if entry["type"] == "summary"
        for key, value in entry["summary"].get("update", {}).items()
    }
    assert summary["speedup"] > 0 and summary["epoch_seconds/median"] > 0


def test_torchrun_as_the_readme_has_it(torchrun: Run, tmp_path: Path) -> None:
    small = (*FEW[1:], "data.train_images=8", "data.val_images=8")
    done = torchrun(2, TRAIN, "strategy=one_weird_trick", "data=digits", *small, "tracker=none", real=True)
    assert done.returncode == 0, done.stderr
    record = only_record(tmp_path)
    assert (record.workers, record.strategy, record.scheme, record.backend) == (
        2,
        "one_weird_trick",
        "a",
        "gloo",
    )
    assert "-m parallel.train strategy=one_weird_trick data=digits" in record.command
    assert done.stdout.count("epoch 1/1") == 1 and done.stdout.count("record: ") == 1, "one rank speaks"


def test_two_nodes_make_one_run(start: Start, tmp_path: Path) -> None:
    port = free_port()
    nodes = [
        start(
            "parallel.torchrun",
            "--nnodes=2",
            f"--node-rank={rank}",
            "--nproc-per-node=1",
            "--master-addr=127.0.0.1",
            f"--master-port={port}",
            "-m",
            TRAIN,
            "strategy=data_parallel",
            "workers=2",
            f"hydra.run.dir=node-{rank}",
            *FEW,
            "tracker=none",
        )
        for rank in range(2)
    ]
    outs = []
    for node in nodes:
        out, err = node.communicate(timeout=600)
        assert node.returncode == 0, err
        outs.append(out)
    assert {path.name for path in tmp_path.iterdir()} == {"node-0"}, "rank 1 writes nothing"
    assert read_record(tmp_path / "node-0").workers == 2
    assert "record: " in outs[0] and outs[1] == ""


@pytest.mark.parametrize(
    "layout, experiment, classes, images, world",
    [
        ("tiny_imagenet", "tiny_imagenet", 10, 110, 2),  # both ranks want the decoded images
        ("imagenet", "imagenet", 10, 110, 1),
        ("dogs_vs_cats", "dogs_vs_cats", 2, 107, 1),
        ("petimages", "dogs_vs_cats", 2, 107, 1),
    ],
)
def test_real_files_in_real_layouts(
    layout: str, experiment: str, classes: int, images: int, world: int, tmp_path: Path
) -> None:
    LAYOUTS[layout](tmp_path / "data", digit_pictures(), 111, 9, Variety(odd=2, broken=1))
    size = 64 if layout == "tiny_imagenet" else 128
    record = trained(
        tmp_path,
        f"experiment={experiment}",
        "data.root=data",
        "trainer.epochs=1",
        "trainer.batch_size=32",
        "model=small",
        f"model.image_size={size}",
        "strategy=data_parallel",
        world=world,
    )
    workload = record.workload
    assert (workload.data, workload.num_classes, workload.batch_size) == (experiment, classes, 32)
    assert workload.train_images == images, (
        "all but the broken one and, of the 120 cats and dogs, a tenth of each"
    )
    assert workload.image_size == size
    assert all(math.isfinite(value) for value in curve(record))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return trained(tmp_path_factory.mktemp("plain"), *FEW, "strategy=single", "trainer.epochs=2")


def test_memory_layout_changes_nothing_but_rounding(plain: Record, tmp_path: Path) -> None:
    record = trained(tmp_path, *FEW, "strategy=single", "trainer.epochs=2", "trainer.channels_last=false")
    assert curve(record) == pytest.approx(curve(plain), rel=2e-3)


def test_bf16_with_a_cosine_and_a_scaled_learning_rate(plain: Record, tmp_path: Path) -> None:
    """lr is scaled by batch/base = 8/128, and follows a cosine over six steps."""
    record = trained(
        tmp_path,
        *FEW,
        "strategy=data_parallel",
        "trainer.epochs=2",
        "trainer.precision=bf16",
        "trainer.schedule=cosine",
        "trainer.lr_scaling=linear",
        "trainer.lr=0.032",
        world=2,
    )
    rates = [epoch.lr for epoch in record.epochs]
    assert rates == pytest.approx([0.002 * 0.5 * (1 + math.cos(math.pi * step / 6)) for step in (2, 5)])
    assert record.epochs[0].train_loss == pytest.approx(plain.epochs[0].train_loss, rel=0.1)
    assert record.epochs[0].train_loss != plain.epochs[0].train_loss
    received: dict[tuple[int, str], dict[str, int]] = defaultdict(dict)
    for span in read_step(only_step(tmp_path)).measured:
        kind, _, bucket = span.name.partition(" ")
        received[span.worker, bucket][kind] = span.received
    gathered = [kinds for kinds in received.values() if {"sum", "gather"} <= kinds.keys()]
    assert gathered
    for kinds in gathered:  # shards may differ by an element
        assert kinds["sum"] == pytest.approx(2 * kinds["gather"], abs=4) and kinds["gather"] > 0


def test_steps_of_the_learning_rate_and_its_square_root(tmp_path: Path) -> None:
    record = trained(
        tmp_path,
        *FEW,
        "strategy=ddp",
        "trainer.epochs=2",
        "trainer.schedule=step",
        "trainer.lr=0.008",
        "trainer.step_epochs=1",
        "trainer.gamma=0.5",
        "trainer.lr_scaling=sqrt",
        world=2,
    )
    assert [epoch.lr for epoch in record.epochs] == pytest.approx([0.002, 0.001])


@pytest.mark.parametrize(
    "world, strategy", [pytest.param(1, "single", marks=pytest.mark.slow), (2, "one_weird_trick")]
)
def test_compiling_takes_whole_segments_and_changes_nothing(
    world: int, strategy: str, plain: Record, tmp_path: Path
) -> None:
    record = trained(
        tmp_path,
        *FEW,
        f"strategy={strategy}",
        "trainer.epochs=2",
        "trainer.compile=true",
        world=world,
        module=ALTERED,
        environment={"ALTER": "fullgraph"},
    )
    assert curve(record) == pytest.approx(curve(plain), rel=2e-3)


def test_a_rank_that_fails_in_training_ends_all(torchrun: Run, tmp_path: Path) -> None:
    began = time.monotonic()
    done = torchrun(
        2,
        ALTERED,
        "strategy=data_parallel",
        *FEW,
        "tracker=none",
        "cluster.timeout_s=900",
        environment={MARK: tmp_path.name, "ALTER": "fail"},
    )
    assert done.returncode == 1
    assert time.monotonic() - began < 600, "not after the 900 s that a worker may wait"
    before, _, cause = done.stderr.partition("Root Cause (first observed failure)")
    assert "rank      : 1" in cause and "RuntimeError: boom in step 1" in cause
    assert "altered_training.py" in before and "boom in step 1" in before
    assert "error: worker 0 ends in step 1: worker 1 failed in step 1: RuntimeError: boom in step 1" in before
    wait_for(lambda: marked(tmp_path.name) == [], 10)
    assert list(tmp_path.rglob("record.json")) == []


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_in_the_folder_of_another_is_refused(world: int, tmp_path: Path) -> None:
    arguments = (TRAIN, *FEW, "strategy=data_parallel", "tracker=none", "hydra.run.dir=one")
    with locked(tmp_path / "one"):
        ended = run_module(world, *arguments, folder=tmp_path)
        names = [path.name for path in (tmp_path / "one").iterdir()]
    assert set(ended.codes) == {2}, ended.err
    (line,) = ended.err.splitlines()
    assert line.startswith("error: ")
    assert f"one must not be written by two runs: process {os.getpid()} on " in line
    assert names == ["run.lock"], "the other's .hydra stays"


@pytest.mark.parametrize("world", [1, 2])
def test_ctrl_c_in_training_leaves_no_process_and_no_record(world: int, start: Start, tmp_path: Path) -> None:
    command = [] if world == 1 else ["parallel.torchrun", f"--nproc-per-node={world}", "-m"]
    strategy = "single" if world == 1 else "one_weird_trick"
    process = start(
        *command,
        TRAIN,
        f"strategy={strategy}",
        *FEW,
        "trainer.epochs=100000",
        "tracker=none",
        environment={MARK: tmp_path.name},
    )

    def epochs() -> int:
        return sum(
            len(list(csv.reader(path.read_text().splitlines()))) for path in tmp_path.rglob("epochs.csv.part")
        )

    wait_for(lambda: epochs() > 2 or process.poll() is not None, 90)
    assert process.poll() is None and len(marked(tmp_path.name)) >= world + (world > 1)
    process.send_signal(signal.SIGINT)
    code = process.wait(40)
    assert code == (130 if world == 1 else 1), process.communicate()[1]
    wait_for(lambda: marked(tmp_path.name) == [], 5)
    assert list(tmp_path.rglob("record.json")) == []
