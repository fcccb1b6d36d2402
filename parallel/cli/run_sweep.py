"""Run the jobs of a sweep, each in its own torchrun process tree: one after another, or some side by
side on cores or GPUs of their own.

Each job has its own world size and run directory. Finished jobs are skipped. A failed job does not
end the sweep: its error is printed at once, and a summary at the end has one line per job.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from parallel.cli import process_tree
from parallel.cli.side_by_side import Share, Start, Task, divide, gpu_names, run_side_by_side, usable_cores
from parallel.cli.sweep import (
    Job,
    Outcome,
    Torchrun,
    claim_folder,
    command,
    finished,
    launcher_environment,
    read_error,
    rerun_command,
    set_aside,
    spans_nodes,
    summary,
)
from parallel.cli.sweep_needs import refuse_without_data, refuse_without_gpus
from parallel.cli.sweep_report import conclude
from parallel.config import require
from parallel.config.stderr import print_to_stderr
from parallel.results.command_line import COMMAND
from parallel.results.environment import SIDE_BY_SIDE
from parallel.results.formatting import count
from parallel.runtime.communication.device import this_machine

ERROR = "error.json"
"""torchrun's file with the error of the first rank to fail."""


def run_jobs(jobs: Sequence[Job], torchrun: Torchrun) -> None:
    """Run the jobs and print a summary, also after an interruption.

    Raises `ValueError` before the first job for two jobs with one folder, a damaged record, a port
    in use, too few GPUs for the workers of a job, a data set that is not in its folder, or too few cores
    or GPUs for jobs side by side, and `SweepFailed` at the end if a job failed.
    """
    folders: set[Path] = set()
    for job in jobs:
        claim_folder(job.run_dir, folders)
    skipped = _skipped(jobs, torchrun)
    to_run = [job for job in jobs if job.index not in skipped]
    if any(job.cluster is None and job.config.cluster.device != "cpu" for job in to_run):
        refuse_without_gpus(to_run, torchrun, this_machine())
    refuse_without_data(to_run)
    for job in jobs:
        if job.index not in skipped and spans_nodes(job, torchrun) and torchrun.node_rank == 0:
            port = torchrun.master_port + job.index
            require(
                _is_free(port),
                "hydra.launcher.master_port",
                port,
                "is in use by another program: choose another",
            )
    outcomes = {job.index: Outcome(job, "not started") for job in jobs}
    shares = [] if torchrun.jobs == 1 else _shares(jobs, torchrun.jobs)
    run = _run_in_turn if torchrun.jobs == 1 else partial(_run_side_by_side, shares)
    try:
        run(jobs, torchrun, skipped, outcomes)
    finally:
        print(summary(list(outcomes.values())), flush=True)
    conclude(outcomes.values())


def _skipped(jobs: Sequence[Job], torchrun: Torchrun) -> dict[int, str]:
    """Return why a job is skipped, for the number of each that is."""
    repeated = repeated_jobs(jobs)
    skipped = {}
    for job in jobs:
        if finished(job.run_dir, job.config):
            skipped[job.index] = "already finished"
        elif job.index in repeated:
            skipped[job.index] = f"the same run as {repeated[job.index].label}"
        elif torchrun.node_rank > 0 and not spans_nodes(job, torchrun):
            skipped[job.index] = "runs on node 0 alone"
    return skipped


def repeated_jobs(jobs: Sequence[Job]) -> dict[int, Job]:
    """Return for the number of each job that equals an earlier one that job.

    A sweep over strategies and workers has `single`, which takes one worker, once for every number of
    workers.
    """
    first: list[Job] = []
    repeated = {}
    for job in jobs:
        same = next((one for one in first if (one.config, one.cluster) == (job.config, job.cluster)), None)
        if same is None:
            first.append(job)
        else:
            repeated[job.index] = same
    return repeated


def _run_in_turn(
    jobs: Sequence[Job], torchrun: Torchrun, skipped: Mapping[int, str], outcomes: dict[int, Outcome]
) -> None:
    """Run the jobs one after another, and note the outcome of each."""
    for number, job in enumerate(jobs, start=1):
        print(_headline(number, jobs), flush=True)
        if job.index in skipped:
            outcomes[job.index] = Outcome(job, "skipped", detail=skipped[job.index])
        else:
            outcomes[job.index] = Outcome(job, "interrupted")  # replaced if it returns
            outcomes[job.index] = _run(job, torchrun)
        if outcomes[job.index].status == "failed" and torchrun.stop_on_failure:
            break


def _run_side_by_side(
    shares: Sequence[Share],
    jobs: Sequence[Job],
    torchrun: Torchrun,
    skipped: Mapping[int, str],
    outcomes: dict[int, Outcome],
) -> None:
    """Run as many jobs at a time as there are shares of the machine, and note the outcome of each.

    After a failure with `stop_on_failure`, no further job is started.
    """
    starts, started = list[Start](), list[Job]()
    with tempfile.TemporaryDirectory(prefix="parallel_sweep_") as temporary:

        def folder_of(job: Job) -> Path:
            return Path(temporary) / str(job.index)

        def start(number: int, job: Job, share: Share) -> Task:
            print(_headline(number, jobs), flush=True)
            outcomes[job.index] = Outcome(job, "interrupted")  # replaced when it ends
            set_aside(job.run_dir, job.sweep_dir, job.config)
            folder = folder_of(job)
            folder.mkdir()
            variables = launcher_environment(job, folder, folder / ERROR) | share.environment()
            own = {**variables, SIDE_BY_SIDE: str(len(shares)), COMMAND: rerun_command(job, torchrun)}
            return Task(f"[{number}]", command(job, torchrun), os.environ | own)

        def ended(place: int, code: int, seconds: float) -> bool:
            job = started[place]
            outcomes[job.index] = _outcome(job, code, seconds, folder_of(job) / ERROR)
            return outcomes[job.index].status != "failed" or not torchrun.stop_on_failure

        for number, job in enumerate(jobs, start=1):
            if job.index in skipped:
                print(_headline(number, jobs), flush=True)
                outcomes[job.index] = Outcome(job, "skipped", detail=skipped[job.index])
            else:
                starts.append(partial(start, number, job))
                started.append(job)
        run_side_by_side(starts, shares, torchrun.grace_s, ended)


def _headline(number: int, jobs: Sequence[Job]) -> str:
    job = jobs[number - 1]
    return f"[{number}/{len(jobs)}] {job.label}, {count(job.workers, 'worker')}, {job.run_dir}"


def _shares(jobs: Sequence[Job], at_a_time: int) -> list[Share]:
    """Return a share of the machine, large enough for any of the jobs, for each job at a time.

    Raises `ValueError` if the machine has too few cores or GPUs.
    """
    gpus = _gpus() if any(job.config.cluster.device != "cpu" for job in jobs) else []
    on_gpus = [bool(gpus) and job.config.cluster.device != "cpu" for job in jobs]
    threads = [job.workers * job.config.cluster.threads for job in jobs]
    cores = max((need for need, gpu in zip(threads, on_gpus, strict=True) if not gpu), default=0)
    wanted = [1 if job.config.cluster.share_gpu else job.workers for job in jobs]
    most = max((need for need, gpu in zip(wanted, on_gpus, strict=True) if gpu), default=0)
    return divide(at_a_time, usable_cores(), gpus, (cores, most))


def _gpus() -> list[str]:
    """Return the GPUs of this machine, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    return gpu_names(os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count())


def _run(job: Job, torchrun: Torchrun) -> Outcome:
    if torchrun.node_rank == 0:
        set_aside(job.run_dir, job.sweep_dir, job.config)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="parallel_sweep_") as folder:
        error_file = Path(folder) / ERROR
        variables = launcher_environment(job, Path(folder), error_file)
        environment = os.environ | variables | {COMMAND: rerun_command(job, torchrun)}
        try:
            code = process_tree.run(command(job, torchrun), environment, torchrun.grace_s)
        finally:
            if sys.stdout.isatty():
                print("\x1b[?25h", end="", flush=True)  # a killed progress bar leaves the cursor hidden
        return _outcome(job, code, time.monotonic() - start, error_file)


def _outcome(job: Job, code: int, seconds: float, error_file: Path) -> Outcome:
    """Return the outcome of a job that has ended, and print its error."""
    if code == 0:
        return Outcome(job, "done", seconds)
    error = read_error(error_file)
    print_to_stderr(f"{job.label} failed (torchrun's exit code {code}):\n{error}")
    return Outcome(job, "failed", seconds, error.splitlines()[-1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # Count a port that was just released as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True
