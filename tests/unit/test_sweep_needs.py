"""Jobs of a sweep that need more GPUs than a pretended machine has, or data that are not there."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path

import pytest

from parallel.cli import run_sweep
from parallel.cli.application import fit_world
from parallel.cli.compose import compose_config
from parallel.cli.sweep import Job, Outcome, Torchrun
from parallel.cli.sweep_needs import refuse_without_data, refuse_without_gpus
from parallel.config import Config
from parallel.emulation.description import uniform
from parallel.runtime.communication.device import Machine

ONE, TWO_NODES = Torchrun(module="m"), Torchrun(module="m", nnodes=2)
TWO_GPUS = Machine(8, 2)
FOLDER = Path("/sweep")


@functools.cache
def configured(workers: int, *overrides: str) -> Config:
    config = compose_config(["strategy=data_parallel", f"workers={workers}", *overrides])
    return fit_world(config, workers, launched=True)


def job(workers: int, *overrides: str, index: int = 0) -> Job:
    return Job(
        index=index,
        overrides=overrides,
        config=configured(workers, *overrides),
        workers=workers,
        run_dir=FOLDER / f"strategy=data_parallel,workers={workers}",
        sweep_dir=FOLDER,
    )


def test_a_job_with_more_workers_than_gpus_is_named() -> None:
    words = (
        "strategy=data_parallel,workers=4 cannot run here: 4 workers on this machine need a GPU each, and torch "
        "sees 2; cluster.share_gpu=true lets workers share a GPU to check results, and cluster.device=cpu uses none"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        refuse_without_gpus([job(1), job(2), job(4)], ONE, TWO_GPUS)


def test_further_jobs_are_counted() -> None:
    words = re.escape("workers=3 (and 2 more of the sweep's 4 jobs) cannot run here: 3 workers")
    with pytest.raises(ValueError, match=words):
        refuse_without_gpus([job(2), job(3), job(4), job(8)], ONE, TWO_GPUS)


@pytest.mark.parametrize(
    ("jobs", "torchrun", "machine"),
    [
        ([job(1), job(2)], ONE, TWO_GPUS),
        ([job(4)], ONE, Machine(8, 0)),
        ([job(4, "cluster.device=cpu")], ONE, TWO_GPUS),
        ([job(4, "cluster.share_gpu=true")], ONE, TWO_GPUS),
        ([job(4)], TWO_NODES, TWO_GPUS),
        ([dataclasses.replace(job(4), cluster=uniform("", 2, None, None, 1))], ONE, TWO_GPUS),
    ],
    ids=["enough", "no GPU: CPU", "CPU", "shared", "two machines", "emulated"],
)
def test_jobs_that_can_run(jobs: list[Job], torchrun: Torchrun, machine: Machine) -> None:
    refuse_without_gpus(jobs, torchrun, machine)


@pytest.mark.parametrize(
    ("refused", "torchrun", "machine", "words"),
    [
        (job(8), TWO_NODES, TWO_GPUS, "4 workers on this machine need a GPU each, and torch sees 2"),
        (job(1, "cluster.device=cuda"), ONE, Machine(8, 0), "cluster.device=cuda needs a GPU"),
        (job(2), ONE, Machine(8, 2, nccl=False), "needs NCCL to connect 2 workers"),
    ],
)
def test_the_rule_is_that_of_the_workers(
    refused: Job, torchrun: Torchrun, machine: Machine, words: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(refused.label)} cannot run here: .*{words}"):
        refuse_without_gpus([refused], torchrun, machine)


def test_one_visible_gpu_is_not_that_of_each_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is under Slurm: torchrun shows all workers the same."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(ValueError, match="2 workers on this machine need a GPU each, and torch sees 1"):
        refuse_without_gpus([job(2)], ONE, Machine(8, 1))


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_nothing_runs_before_all_jobs_are_known_to_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, at_a_time: int
) -> None:
    started: list[str] = []

    def start(job: Job, torchrun: Torchrun) -> Outcome:
        started.append(job.label)
        return Outcome(job, "done")

    monkeypatch.setattr(run_sweep, "this_machine", lambda: TWO_GPUS)
    monkeypatch.setattr(run_sweep, "_run", start)
    jobs = [
        dataclasses.replace(one, sweep_dir=tmp_path, run_dir=tmp_path / f"workers={one.workers}")
        for one in (job(1), job(4, index=1))
    ]
    with pytest.raises(ValueError, match=r"^workers=4 cannot run here: 4 workers"):
        run_sweep.run_jobs(jobs, dataclasses.replace(ONE, jobs=at_a_time))
    assert started == []
    (jobs[1].run_dir).mkdir()
    monkeypatch.setattr(run_sweep, "finished", lambda run_dir, _: run_dir == jobs[1].run_dir)
    run_sweep.run_jobs(jobs, ONE)  # what has finished needs no GPU
    assert started == ["workers=1"]


def test_data_that_are_not_there_are_named_before_the_first_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[str] = []
    tiny = f"data=tiny_imagenet data.root={tmp_path / 'tiny'}".split()
    cats = f"data=dogs_vs_cats data.root={tmp_path / 'cats'}".split()
    jobs = [
        dataclasses.replace(job(1, *data, index=index), sweep_dir=tmp_path, run_dir=tmp_path / f"job{index}")
        for index, data in enumerate(([], tiny, cats))
    ]

    def start(job: Job, torchrun: Torchrun) -> Outcome:
        started.append(job.label)
        return Outcome(job, "done")

    monkeypatch.setattr(run_sweep, "_run", start)
    words = (
        rf"^job1 \(and 1 more of the sweep's 3 jobs\) cannot run here: data.root={tmp_path}/tiny is not a folder; .*"
        "`python scripts/get_data.py tiny_imagenet` gets it into data/tiny_imagenet$"
    )
    with pytest.raises(ValueError, match=words):
        run_sweep.run_jobs(jobs, ONE)
    assert started == []
    (tmp_path / "tiny" / "val").mkdir(parents=True)
    (tmp_path / "tiny" / "wnids.txt").touch()
    (tmp_path / "tiny" / "val" / "val_annotations.txt").touch()
    monkeypatch.setattr(run_sweep, "finished", lambda run_dir, _: run_dir == jobs[2].run_dir)
    run_sweep.run_jobs(jobs, ONE)  # what has finished needs no data
    assert started == ["job0", "job1"]


def test_other_data_need_no_folder() -> None:
    refuse_without_data([job(1), job(1, "data=synthetic")])
