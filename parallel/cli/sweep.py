"""The jobs of a sweep: what they are, their command lines, folders and outcomes.

`run_sweep` runs them with torchrun, `slurm_sweep` as jobs of Slurm.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from parallel.config import Config, require, require_number
from parallel.config.checks import MOST_SECONDS, MOST_WORKERS
from parallel.config.signals import ignored
from parallel.emulation.description import Description
from parallel.results.command_line import script_module
from parallel.results.record_files import RECORD, read_record
from parallel.results.tracker.connection import in_agent
from parallel.runtime.communication.interface import LOOPBACK

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
    master_addr: str = LOOPBACK
    master_port: int = 29500
    stop_on_failure: bool = False
    grace_s: float = 15.0
    max_restarts: int = 0
    jobs: int = 1

    def __post_init__(self) -> None:
        where = "hydra.launcher"  # composed by Hydra without a schema, so types are checked here
        for name in ("nnodes", "node_rank", "master_port", "max_restarts", "jobs"):
            require(
                type(getattr(self, name)) is int,
                f"{where}.{name}",
                getattr(self, name),
                "must be a whole number",
            )
        require_number(f"{where}.nnodes", self.nnodes, 1, MOST_WORKERS)
        require_number(f"{where}.jobs", self.jobs, 1, MOST_WORKERS)
        require(
            self.jobs == 1 or self.nnodes == 1,
            f"{where}.jobs",
            self.jobs,
            f"must be 1 for a sweep over nnodes={self.nnodes} machines",
        )
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
    cluster: Description | None = None
    """Emulated cluster in which it runs; None: on this machine as it is."""

    @property
    def label(self) -> str:
        """Folder of the job within the sweep: `strategy=single`."""
        return os.path.relpath(self.run_dir, self.sweep_dir)


@dataclass(frozen=True)
class Outcome:
    """Result of a job: done, skipped, failed, interrupted, queued (at Slurm) or not started."""

    job: Job
    status: str
    seconds: float = 0.0
    detail: str = ""


def claim_folder(run_dir: Path, folders: set[Path]) -> None:
    """Add the folder of a job to those of the sweep's other jobs.

    Raises `ValueError` if it is the folder of another job, whose result it would replace, and for a
    second job within an agent of W&B, which has an id for one run only.
    """
    if folders and in_agent():
        raise ValueError(
            "WANDB_SWEEP_ID is set, so an agent of W&B started this: its sweep varies parameters, and a "
            "run of it cannot be a sweep with several jobs"
        )
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
    `<sweep>.replaced/`, and print where.

    Returns the new path, or None if a run with `config` can begin or go on in `run_dir`.
    """
    if not (run_dir / RECORD).exists() and not _has_other_checkpoints(run_dir, config):
        return None
    target = sweep_dir.with_name(f"{sweep_dir.name}.replaced") / run_dir.relative_to(sweep_dir)
    target.parent.mkdir(parents=True, exist_ok=True)
    replaced = run_dir.rename(next(path for path in numbered(target) if not path.exists()))
    print(f"the run of another configuration in {run_dir} was moved to {replaced}", flush=True)
    return replaced


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
    ran = [
        f"--max-restarts={torchrun.max_restarts}",
        "-m",
        torchrun.module or started_module(),
        *job.overrides,
    ]
    if job.cluster is not None:
        return [
            sys.executable,
            "-m",
            "parallel.emulate",
            "run",
            *_emulated(job.cluster, job.workers),
            "--",
            *ran,
        ]
    if spans_nodes(job, torchrun):
        meeting = [
            f"--nnodes={torchrun.nnodes}",
            f"--node-rank={torchrun.node_rank}",
            f"--master-addr={torchrun.master_addr}",
            f"--master-port={torchrun.master_port + job.index}",
            f"--rdzv-conf=timeout={RENDEZVOUS_TIMEOUT_S}",
            f"--nproc-per-node={job.workers // torchrun.nnodes}",
        ]
    else:
        meeting = [f"--nproc-per-node={job.workers}"]
    return [sys.executable, "-m", "parallel.cli.torchrun", *meeting, *ran]


def _emulated(cluster: Description, workers: int) -> Iterator[str]:
    """Yield the options of `parallel.emulate run` for a new cluster; with fewer workers than hosts,
    all of them are on host 0."""
    hosts = len(cluster.hosts)
    on_each = [workers // hosts] * hosts if workers >= hosts else [workers, *[0] * (hosts - 1)]
    values = {"hosts": hosts, "rate": cluster.hosts[0].rate, "delay": cluster.delay, "cores": cluster.cores}
    yield from (f"--{name}={value}" for name, value in values.items() if value is not None)
    yield f"--workers-per-host={','.join(map(str, on_each))}"


def rerun_command(job: Job, torchrun: Torchrun) -> str:
    """Return the command that runs a job of a sweep again, in a folder of its own."""
    overrides = tuple(o for o in job.overrides if not o.startswith("hydra.run.dir="))
    _, *words = command(dataclasses.replace(job, overrides=overrides), torchrun)
    public = {"parallel.cli.torchrun": "parallel.torchrun"}
    kept = [public.get(word, word) for word in words if word != "--max-restarts=0"]
    return shlex.join(["python", *kept])


def launcher_environment(job: Job, folder: Path, error_file: Path) -> dict[str, str]:
    """Return the variables that torchrun needs for a job; `folder` holds its temporary files."""
    variables = {
        "PET_LOG_DIR": str(folder),  # removed also if torchrun is killed and can't remove one of its own
        "TORCHELASTIC_ERROR_FILE": str(error_file),
        # torchrun sets this only for several workers; the baseline must be treated alike.
        "OMP_NUM_THREADS": str(job.config.cluster.threads),
    }
    if ignored(signal.SIGHUP):
        # torchrun would end on a SIGHUP, also under nohup. (Older versions of torch ignore this.)
        variables["PET_SIGNALS_TO_HANDLE"] = "SIGTERM,SIGINT,SIGQUIT"
    return variables


def started_module() -> str:
    """Return the module that this process was started with (`python -m …`, or a console script).

    Raises `ValueError` if it was not started with a module.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        module = script_module(sys.argv[0])
        if module is not None:
            return module
        raise ValueError(
            "hydra.launcher.module=None must name the module to run: this process was not started "
            "with python -m"
        )
    return str(spec.name)


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return the number of jobs by status, and a line for each job."""
    counts = ", ".join(
        f"{number} {status}"
        for status in ("done", "skipped", "failed", "interrupted", "queued", "not started")
        if (number := sum(outcome.status == status for outcome in outcomes))
    )
    lines = [
        f"{outcome.status:<11} {outcome.seconds:8.1f} s  {outcome.job.label}  {outcome.detail}".rstrip()
        for outcome in outcomes
    ]
    return "\n  ".join([f"{outcomes[0].job.sweep_dir}: {counts}", *lines])


def spans_nodes(job: Job, torchrun: Torchrun) -> bool:
    """Return whether a job has workers on all nodes; one with fewer workers runs on node 0."""
    return 1 < torchrun.nnodes <= job.workers


def read_error(path: Path) -> str:
    """Return the error of the first rank to fail from torchrun's file: a traceback or one
    sentence."""
    if not path.exists():
        return NO_ERROR
    message = json.loads(path.read_text(encoding="utf-8"))["message"]
    if isinstance(message, dict):
        message = message.get("extraInfo", {}).get("py_callstack") or message.get("message")
    return str(message).strip() or NO_ERROR
