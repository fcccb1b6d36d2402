"""Run the jobs of a sweep one after another, each in its own torchrun process tree.

Each job has its own world size and run directory. Finished jobs are skipped. A failed job does not
end the sweep: its error is printed at once, and a summary at the end has one line per job.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from parallel.cli import process_tree
from parallel.config import Config, require, require_number
from parallel.config.checks import MOST_SECONDS, MOST_WORKERS
from parallel.results.record_files import RECORD, read_record

RENDEZVOUS_TIMEOUT_S = 86400
"""A node may have to wait while another one runs a job that needs only one node."""
CHECKPOINTS = "checkpoints"
"""Folder of a run's checkpoints; `parallel.checkpoints`, which knows it, imports torch."""
MOST_RESTARTS = 1000
NO_ERROR = "no rank reported an error; its output is above"


class SweepFailed(Exception):
    """Raised after a sweep with failed jobs, whose errors have been printed."""


@dataclass(frozen=True, kw_only=True)
class Torchrun:
    """Options of torchrun. conf/hydra/launcher/torchrun.yaml explains the fields."""

    module: str | None = None
    nnodes: int = 1
    node_rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int = 29500
    stop_on_failure: bool = False
    grace_s: float = 15.0
    max_restarts: int = 0

    def __post_init__(self) -> None:
        where = "hydra.launcher"  # composed by Hydra without a schema, so types are checked here
        for name in ("nnodes", "node_rank", "master_port", "max_restarts"):
            require(
                type(getattr(self, name)) is int,
                f"{where}.{name}",
                getattr(self, name),
                "must be a whole number",
            )
        require_number(f"{where}.nnodes", self.nnodes, 1, MOST_WORKERS)
        require(
            0 <= self.node_rank < self.nnodes,
            f"{where}.node_rank",
            self.node_rank,
            f"must be at least 0 and below nnodes={self.nnodes}",
        )
        require(
            0 < self.master_port < 65536,
            f"{where}.master_port",
            self.master_port,
            "must be a port from 1 to 65535",
        )
        require_number(f"{where}.max_restarts", self.max_restarts, 0, MOST_RESTARTS)
        require(
            type(self.stop_on_failure) is bool,
            f"{where}.stop_on_failure",
            self.stop_on_failure,
            "must be true or false",
        )
        require(
            type(self.grace_s) in (int, float) and 0 <= self.grace_s <= MOST_SECONDS,
            f"{where}.grace_s",
            self.grace_s,
            f"must be a number of seconds, at least 0 and at most {MOST_SECONDS:,}",
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """A validated job of a sweep."""

    index: int
    overrides: tuple[str, ...]
    """Hydra overrides of the job's command line, including its run directory."""
    config: Config
    workers: int
    run_dir: Path
    sweep_dir: Path

    @property
    def label(self) -> str:
        """Folder of the job within the sweep: `strategy=single`."""
        return os.path.relpath(self.run_dir, self.sweep_dir)


@dataclass(frozen=True)
class Outcome:
    """Result of a job: done, skipped, failed, interrupted or not started."""

    job: Job
    status: str
    seconds: float = 0.0
    detail: str = ""


def run_jobs(jobs: Sequence[Job], torchrun: Torchrun) -> None:
    """Run the jobs in order and print a summary, also after an interruption.

    Raises `ValueError` before the first job for two jobs with one folder, a damaged record or a
    port in use, and `SweepFailed` at the end if a job failed.
    """
    folders: set[Path] = set()
    for job in jobs:
        claim_folder(job.run_dir, folders)
    skipped = {job.index for job in jobs if finished(job.run_dir, job.config)}
    for job in jobs:
        if job.index not in skipped and _spans_nodes(job, torchrun) and torchrun.node_rank == 0:
            port = torchrun.master_port + job.index
            require(
                _is_free(port),
                "hydra.launcher.master_port",
                port,
                "is in use by another program: choose another",
            )
    outcomes = {job.index: Outcome(job, "not started") for job in jobs}
    try:
        for number, job in enumerate(jobs, start=1):
            workers = "1 worker" if job.workers == 1 else f"{job.workers} workers"
            print(f"[{number}/{len(jobs)}] {job.label}, {workers}, {job.run_dir}", flush=True)
            if job.index in skipped:
                outcomes[job.index] = Outcome(job, "skipped", detail="already finished")
            elif torchrun.node_rank > 0 and not _spans_nodes(job, torchrun):
                outcomes[job.index] = Outcome(job, "skipped", detail="runs on node 0 alone")
            else:
                outcomes[job.index] = Outcome(job, "interrupted")  # replaced if it returns
                outcomes[job.index] = _run(job, torchrun)
            if outcomes[job.index].status == "failed" and torchrun.stop_on_failure:
                break
    finally:
        print(summary(list(outcomes.values())), flush=True)
    failed = [outcome.job.label for outcome in outcomes.values() if outcome.status == "failed"]
    if failed:
        raise SweepFailed(f"{len(failed)} of {len(jobs)} jobs failed: {', '.join(failed)}")


def claim_folder(run_dir: Path, folders: set[Path]) -> None:
    """Add the folder of a job to those of the sweep's other jobs.

    Raises `ValueError` if it is the folder of another job, whose result it would replace.
    """
    if run_dir in folders:
        raise ValueError(
            f"hydra.sweep.subdir={run_dir.name} must differ between the jobs of a sweep: two of them "
            f"have the folder {run_dir} (is a value given twice?)"
        )
    folders.add(run_dir)


def finished(run_dir: Path, config: Config) -> bool:
    """Return whether `run_dir` has the record of a finished run with exactly this configuration.

    Raises `ValueError` if the record is damaged.
    """
    if not (run_dir / RECORD).exists():
        return False
    return bool(read_record(run_dir).config == json.loads(json.dumps(dataclasses.asdict(config))))


def set_aside(run_dir: Path, sweep_dir: Path, config: Config) -> Path | None:
    """Move the run in `run_dir`, if it is finished or of another configuration than `config`, to
    `<sweep>.replaced/`.

    Returns the new path, or None if a run with `config` can begin or go on in `run_dir`.
    """
    if not (run_dir / RECORD).exists() and not _has_other_checkpoints(run_dir, config):
        return None
    target = sweep_dir.with_name(f"{sweep_dir.name}.replaced") / run_dir.relative_to(sweep_dir)
    target.parent.mkdir(parents=True, exist_ok=True)
    return run_dir.rename(next(path for path in numbered(target) if not path.exists()))


def _has_other_checkpoints(run_dir: Path, config: Config) -> bool:
    if not (run_dir / CHECKPOINTS).exists():
        return False
    from parallel.training.resuming import holds_other_run  # imports torch

    return holds_other_run(run_dir, config)


def numbered(path: Path) -> Iterator[Path]:
    """Yield `path`, then `path-2`, `path-3`, and so on."""
    yield path
    number = 2
    while True:
        yield path.with_name(f"{path.name}-{number}")
        number += 1


def command(job: Job, torchrun: Torchrun) -> list[str]:
    """Return the command line of a job."""
    if _spans_nodes(job, torchrun):
        meeting = [
            f"--nnodes={torchrun.nnodes}",
            f"--node-rank={torchrun.node_rank}",
            f"--master-addr={torchrun.master_addr}",
            f"--master-port={torchrun.master_port + job.index}",
            f"--rdzv-conf=timeout={RENDEZVOUS_TIMEOUT_S}",
            f"--nproc-per-node={job.workers // torchrun.nnodes}",
        ]
    else:
        meeting = ["--standalone", f"--nproc-per-node={job.workers}"]
    return [
        sys.executable,
        "-m",
        "parallel.cli.torchrun",
        *meeting,
        f"--max-restarts={torchrun.max_restarts}",
        "-m",
        torchrun.module or started_module(),
        *job.overrides,
    ]


def launcher_environment(job: Job, folder: Path, error_file: Path) -> dict[str, str]:
    """Return the variables that torchrun needs for a job; `folder` holds its temporary files."""
    variables = {
        "PET_LOG_DIR": str(folder),  # otherwise it leaves a folder in /tmp
        "TORCHELASTIC_ERROR_FILE": str(error_file),
        # torchrun sets this only for several workers; the baseline must be treated alike.
        "OMP_NUM_THREADS": str(job.config.cluster.threads),
    }
    if process_tree.ignored(signal.SIGHUP):
        # torchrun would end on a SIGHUP, also under nohup. (Older versions of torch ignore this.)
        variables["PET_SIGNALS_TO_HANDLE"] = "SIGTERM,SIGINT,SIGQUIT"
    return variables


def started_module() -> str:
    """Return the module that this process was started with (`python -m …`).

    Raises `ValueError` if it was not started with a module.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        raise ValueError(
            "hydra.launcher.module=None must name the module to run: this process was not started "
            "with python -m"
        )
    return str(spec.name)


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return the number of jobs by status, and a line for each job."""
    counts = ", ".join(
        f"{number} {status}"
        for status in ("done", "skipped", "failed", "interrupted", "not started")
        if (number := sum(outcome.status == status for outcome in outcomes))
    )
    lines = [
        f"{outcome.status:<11} {outcome.seconds:8.1f} s  {outcome.job.label}  {outcome.detail}".rstrip()
        for outcome in outcomes
    ]
    return "\n  ".join([f"{outcomes[0].job.sweep_dir}: {counts}", *lines])


def _spans_nodes(job: Job, torchrun: Torchrun) -> bool:
    return 1 < torchrun.nnodes <= job.workers


def _run(job: Job, torchrun: Torchrun) -> Outcome:
    replaced = set_aside(job.run_dir, job.sweep_dir, job.config) if torchrun.node_rank == 0 else None
    if replaced is not None:
        print(f"the run of another configuration in {job.run_dir} was moved to {replaced}", flush=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="parallel_sweep_") as folder:
        error_file = Path(folder) / "error.json"
        environment = os.environ | launcher_environment(job, Path(folder), error_file)
        try:
            code = process_tree.run(command(job, torchrun), environment, torchrun.grace_s)
        finally:
            if sys.stdout.isatty():
                print("\x1b[?25h", end="", flush=True)  # a killed progress bar leaves the cursor hidden
        seconds = time.monotonic() - start
        if code == 0:
            return Outcome(job, "done", seconds)
        error = _read_error(error_file)
    print(f"{job.label} failed (torchrun's exit code {code}):\n{error}", file=sys.stderr, flush=True)
    return Outcome(job, "failed", seconds, error.splitlines()[-1])


def _read_error(path: Path) -> str:
    """Return the error of the first rank to fail from torchrun's file: a traceback or one
    sentence."""
    if not path.exists():
        return NO_ERROR
    message = json.loads(path.read_text(encoding="utf-8"))["message"]
    if isinstance(message, dict):
        message = message.get("extraInfo", {}).get("py_callstack") or message.get("message")
    return str(message).strip() or NO_ERROR


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # Count a port that was just released as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True
