"""Run the jobs of a sweep as jobs of Slurm, which decides when and where each runs.

All jobs are submitted at once. Finished ones are skipped; one that is queued or runs already, from an
earlier call of the same sweep, is waited for and not submitted again. The id of a job is in its run
directory, and counts if Slurm knows a job of this id and name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from parallel.cli.process_tree import stops_deferred, stops_ignored
from parallel.cli.slurm_job import SCRIPT, Slurm, batch_script, folder_of
from parallel.cli.slurm_queue import COMPLETED, JobState, QueueError, cancel, require_slurm, states, submit
from parallel.cli.sweep import Job, Outcome, claim_folder, finished, read_error, set_aside, summary
from parallel.cli.sweep_report import conclude
from parallel.config import one_line
from parallel.config.stderr import print_to_stderr
from parallel.results.formatting import count
from parallel.results.json_files import write_atomically

QUEUED = "queued.json"
"""File in a job's folder with the id of its job at Slurm and a digest of the configuration."""


@dataclass
class Queued:
    """A job that Slurm has."""

    job: Job
    id: str
    seen: JobState | None = None
    """The state that was printed last."""
    started: float | None = None
    """When it was first seen running."""


def run_jobs(jobs: Sequence[Job], slurm: Slurm) -> None:
    """Submit the jobs, wait for them unless `slurm.wait` is false, and print a summary.

    Ctrl-C cancels the jobs; a SIGTERM or SIGHUP ends only this process, and the same command waits
    again. Raises `ValueError` if a job is rejected, and `SweepFailed` at the end if a job failed. If
    not all jobs can be submitted, for whatever reason, none is left in the queue.
    """
    require_slurm()
    folders: set[Path] = set()
    for job in jobs:
        claim_folder(job.run_dir, folders)
        slurm.node_count(job.workers)
    outcomes = {job.index: Outcome(job, "not started") for job in jobs}
    waiting: list[Queued] = []
    try:
        _submit_all(jobs, slurm, outcomes, waiting)
        if slurm.wait:
            _wait(waiting, slurm, outcomes)
    except KeyboardInterrupt:
        with stops_ignored():  # another Ctrl-C would end scancel
            cancel([queued.id for queued in waiting])
        for queued in waiting:
            if outcomes[queued.job.index].status == "queued":
                outcomes[queued.job.index] = Outcome(queued.job, "interrupted", detail=f"job {queued.id}")
        ids = ", ".join(queued.id for queued in waiting) or "none"
        print_to_stderr(
            f"Ctrl-C: cancelled the jobs {ids}. Called again, this sweep goes on at their checkpoints; with "
            "hydra.launcher.wait=false it leaves its jobs to Slurm and does not wait for them."
        )
        raise
    finally:
        print(summary(list(outcomes.values())), flush=True)
    conclude(outcomes.values())


def _submit_all(
    jobs: Sequence[Job], slurm: Slurm, outcomes: dict[int, Outcome], waiting: list[Queued]
) -> None:
    """Submit the jobs that are neither finished nor queued. An error cancels those before it."""
    submitted: list[str] = []
    try:
        for number, job in enumerate(jobs, start=1):
            head = f"[{number}/{len(jobs)}] {job.label}, {count(job.workers, 'worker')}"
            if finished(job.run_dir, job.config):
                outcomes[job.index] = Outcome(job, "skipped", detail="already finished")
                print(f"{head}: already finished", flush=True)
                continue
            queued = _already_queued(job)
            known = queued is not None
            # An sbatch that is interrupted may leave a job in the queue whose id nobody knows.
            with stops_deferred(f"when Slurm has answered for {job.label}"):
                if queued is None:
                    # At most array_parallelism jobs run at once, each after the end of one before it.
                    most = slurm.array_parallelism
                    queued = _submit(job, slurm, waiting[-most].id if len(waiting) >= most else None)
                    submitted.append(queued.id)
                waiting.append(queued)
                outcomes[job.index] = Outcome(job, "queued", detail=f"job {queued.id}")
            log = folder_of(job) / f"log-{queued.id}.txt"
            print(f"{head}: job {queued.id}{' (of an earlier call)' * known}, {log}", flush=True)
    except Exception:
        with stops_ignored():
            cancel(submitted)
        for index, outcome in outcomes.items():
            if outcome.status == "queued":
                outcomes[index] = Outcome(outcome.job, "not started")
        waiting.clear()
        raise


def _submit(job: Job, slurm: Slurm, after: str | None) -> Queued:
    set_aside(job.run_dir, job.sweep_dir, job.config)
    folder = folder_of(job)
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / SCRIPT
    script.write_text(batch_script(job, slurm, Path.cwd()), encoding="utf-8")
    try:
        job_id = submit(script, after)
    except QueueError as error:
        raise ValueError(
            f"Slurm does not answer: {one_line(error)} (squeue shows whether it has {job.label} nevertheless)"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"Slurm rejects {job.label}: {one_line(error)} (the options are in {script})"
        ) from error
    try:
        write_atomically(folder / QUEUED, json.dumps({"id": job_id, "config": _digest(job)}).encode())
    except OSError:
        cancel([job_id])
        raise
    return Queued(job, job_id)


def _already_queued(job: Job) -> Queued | None:
    """Return the job that Slurm has for this one.

    Raises `ValueError` if it is of another configuration.
    """
    file = folder_of(job) / QUEUED
    if not file.exists():
        return None
    noted = json.loads(file.read_text(encoding="utf-8"))
    try:
        state = states([noted["id"]]).get(noted["id"])
    except QueueError as error:
        raise ValueError(f"Slurm does not answer: {one_line(error)}") from error
    if state is None or state.ended or state.name != job.label:
        return None
    if noted["config"] != _digest(job):
        raise ValueError(
            f"{job.run_dir} is the folder of job {noted['id']}, which is {state} with another configuration: wait for "
            f"it, or `scancel {noted['id']}`"
        )
    return Queued(job, noted["id"])


def _digest(job: Job) -> str:
    return hashlib.sha256(json.dumps(dataclasses.asdict(job.config), sort_keys=True).encode()).hexdigest()[
        :16
    ]


def _wait(waiting: Sequence[Queued], slurm: Slurm, outcomes: dict[int, Outcome]) -> None:
    """Wait for the jobs, print every change of a state, and note each outcome."""
    left = list(waiting)
    silent = False
    while left:
        try:
            now = states([queued.id for queued in left])
            silent = False
        except QueueError as error:  # its controller may be restarted, which jobs survive
            if not silent:
                print_to_stderr(f"warning: Slurm does not answer, asked again: {one_line(error)}")
            silent = True
            time.sleep(slurm.poll_s)
            continue
        for queued in tuple(left):
            state = now.get(queued.id)
            if state is not None and str(state) != str(queued.seen):
                print(f"job {queued.id}, {queued.job.label}: {state}", flush=True)
                queued.seen = state
            if state is not None and state.state == "RUNNING" and queued.started is None:
                queued.started = time.monotonic()
            if state is None or state.ended:
                left.remove(queued)
                outcomes[queued.job.index] = _outcome(queued, state)
        if left:
            time.sleep(slurm.poll_s)


def _outcome(queued: Queued, state: JobState | None) -> Outcome:
    """Return the outcome of a job that has ended, or that Slurm has forgotten, and print its error."""
    job = queued.job
    seconds = 0.0 if queued.started is None else time.monotonic() - queued.started
    if finished(job.run_dir, job.config) if state is None else state.state == COMPLETED:
        return Outcome(job, "done", seconds, f"job {queued.id}")
    log = folder_of(job) / f"log-{queued.id}.txt"
    why = "forgotten by Slurm before it was finished" if state is None else str(state)
    error = _first_error(folder_of(job)) or f"no rank reported an error; its output is in {log}"
    print_to_stderr(f"{job.label} failed (job {queued.id}: {why}):\n{error}")
    return Outcome(job, "failed", seconds, f"job {queued.id} {why}: {error.splitlines()[-1]}")


def _first_error(folder: Path) -> str | None:
    """Return the error of the rank that failed first, from the ranks' files."""
    times = []
    for path in folder.glob("error-*.json"):
        message = json.loads(path.read_text(encoding="utf-8"))["message"]
        times.append((int(message["extraInfo"]["timestamp"]), path))
    return read_error(min(times)[1]) if times else None
