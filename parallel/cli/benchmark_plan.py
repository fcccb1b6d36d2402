"""What a benchmark of all strategies runs on a machine: device, workers, threads, strategies, commands."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from parallel.cli.compose import compose_config
from parallel.config import one_line, require, require_one_of
from parallel.graph.configured import graph_of
from parallel.results.formatting import count
from parallel.runtime.communication.device import Machine
from parallel.strategies import STRATEGIES as NAMED
from parallel.strategies import build_plan

STRATEGIES = (
    "single",
    "data_parallel",
    "model_parallel",
    "model_parallel_tensor",
    "one_weird_trick",
    "searched",
    "ddp",
)
"""Choices of `strategy=` in the order in which they run; the baseline first."""
MOST_CPU_WORKERS = 8
"""Workers on a CPU by default. The batch of 64 is split among them; more cores become more threads."""
CALIBRATION_S = 60
"""Seconds to measure ops and messages. On two cores this covers most shapes of AlexNet at 64 px."""
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Workers and their device."""

    device: str
    workers: int
    threads: int
    """CPU threads of each worker."""
    whole_threads: int | None = None
    """Threads of a second baseline, which uses all cores. None: the first does already."""
    notes: tuple[str, ...] = ()
    """Sentences for the user on what was chosen, and what it means."""

    @property
    def workload(self) -> tuple[str, ...]:
        """Overrides that choose model, data and batch.

        On GPUs these are random images of the papers' size with 128 images per worker, since a step of
        64 small images takes no longer on many GPUs than on one.
        """
        if self.device == "cpu":
            return ("experiment=compare",)
        batch = 128 * self.workers
        images = (f"data.train_images={10 * batch}", f"data.val_images={batch}")
        return ("experiment=speed", f"trainer.batch_size={batch}", *images)


def choose(machine: Machine, workers: int | None, device: str | None) -> Setup:
    """Return the setup for a machine; `workers` and `device` are None where they are to be chosen.

    Raises `ValueError` where strategies cannot be compared.
    """
    notes = []
    if device is None:
        device = "cuda" if machine.gpus > 1 and machine.nccl else "cpu"
        if machine.gpus == 1:
            notes.append(
                "1 GPU: every worker needs one of its own, so strategies are compared on the CPU; "
                "`python -m parallel.train strategy=single` trains on the GPU, and `python -m parallel.verify` "
                "checks all strategies on it"
            )
        elif machine.gpus > 1 and not machine.nccl:
            notes.append(
                f"{machine.gpus} GPUs: torch was built without NCCL, which connects workers on GPUs, so "
                "strategies are compared on the CPU"
            )
    require_one_of("device", device, DEVICES)
    require(
        device == "cpu" or machine.gpus > 1,
        "device",
        device,
        f"needs two GPUs, one for each worker, and torch sees {machine.gpus}{machine.missing}: use device=cpu",
    )
    require(
        device == "cpu" or machine.nccl,
        "device",
        device,
        "needs NCCL, and torch was built without it: use device=cpu",
    )
    default = machine.gpus if device == "cuda" else max(2, min(machine.cores, MOST_CPU_WORKERS))
    workers = default if workers is None else workers
    require(workers > 1, "workers", workers, "must be at least 2: strategies are compared with one worker")
    if device == "cuda":
        require(
            workers <= machine.gpus,
            "workers",
            workers,
            f"must be at most the {machine.gpus} GPUs, one for each worker; device=cpu takes more",
        )
        return Setup(device=device, workers=workers, threads=1, notes=tuple(notes))
    if workers > machine.cores:
        notes.append(
            f"{workers} workers share {count(machine.cores, 'core')}, so that none of their "
            "speedups is that of a machine with a core for each"
        )
    threads = max(1, machine.cores // workers)
    return Setup(
        device=device,
        workers=workers,
        threads=threads,
        whole_threads=machine.cores if machine.cores > threads else None,
        notes=tuple(notes),
    )


def shared_overrides(setup: Setup, own: Sequence[str]) -> list[str]:
    """Return the overrides that calibration and checks share with the runs; `own` are the user's."""
    device = (f"cluster.device={setup.device}", f"cluster.threads={setup.threads}")
    return [*setup.workload, *device, *own]


def impossible(setup: Setup, own: Sequence[str]) -> dict[str, str]:
    """Return the strategies that these workers cannot run, each with the reason.

    Raises `ValueError` for invalid overrides.
    """
    shared = [*shared_overrides(setup, own), f"workers={setup.workers}"]
    config = compose_config(shared)
    config.cluster.require_own_gpus("a benchmark")
    graph = graph_of(config)
    reasons = {}
    for name in STRATEGIES:
        strategy = compose_config([*shared, f"strategy={name}"]).strategy
        if strategy.name in NAMED:
            try:
                build_plan(graph, strategy.fixed_workers or setup.workers, strategy)
            except ValueError as error:
                reasons[name] = one_line(error)
    return reasons


def calibration(setup: Setup, own: Sequence[str]) -> list[str]:
    """Return the command that calibrates the machine for these workers."""
    start = (sys.executable, "-m", "parallel.torchrun", f"--nproc-per-node={setup.workers}")
    options = (f"calibrate.budget_s={CALIBRATION_S}", f"workers={setup.workers}")
    return [*start, "-m", "parallel.calibrate", *options, *shared_overrides(setup, own)]


def trainings(setup: Setup, left_out: Collection[str], sweep: str, own: Sequence[str]) -> list[list[str]]:
    """Return the commands that train: every strategy not `left_out`, then the baseline on all cores.

    Numbers that differ between benchmarks are swept over with a single value, so that they are part
    of the names of the runs' folders.
    """
    chosen = ",".join(name for name in STRATEGIES if name not in left_out)
    jobs = [[f"strategy={chosen}", f"workers=choice({setup.workers})", f"cluster.threads={setup.threads}"]]
    if setup.whole_threads is not None:
        jobs.append(["strategy=single", f"cluster.threads=choice({setup.whole_threads})"])
    start = [sys.executable, "-m", "parallel.train", "-m", *setup.workload, f"cluster.device={setup.device}"]
    return [[*start, *job, *own, "hydra/launcher=torchrun", f"sweep={sweep}"] for job in jobs]
