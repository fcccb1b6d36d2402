"""A job of a sweep as a batch script for Slurm. conf/hydra/launcher/submitit_slurm.yaml explains the
options.

The script starts one task per worker with srun. When a signal has stopped the run (exit code 143:
preemption, or some time before the time limit) its state is saved, and the script queues the job
again, which then goes on in the same folder. A script that is cancelled gets the signal itself, and
ends before it could do so.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parallel.cli.ranked import STOPPED
from parallel.cli.slurm_ranks import ERROR_FOLDER
from parallel.cli.sweep import Job, started_module
from parallel.config import require, require_number
from parallel.config.checks import MOST_SECONDS, MOST_WORKERS
from parallel.results.command_line import COMMAND

WHERE = "hydra.launcher"
FOLDER = "slurm"
"""Folder in a job's run directory with its script, its output and its errors."""
SCRIPT = "job.sh"
STRAGGLER_S = 600
"""Time after the end of the first task in which the others must end: worker 0 may still send files
to the tracker."""
NUMBERS = ("timeout_min", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "array_parallelism")
WORDS = ("module", "partition", "account", "qos", "constraint", "exclude", "gres")
PARAMETER = re.compile(r"[a-z][a-z0-9-]*")
MOST = 10_000_000


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """Options of the launcher."""

    module: str | None = None
    timeout_min: int = 60
    nodes: int | None = None
    tasks_per_node: int = 1
    cpus_per_task: int | None = None
    gpus_per_node: int | None = None
    gpus_per_task: int | None = None
    mem_gb: float | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    gres: str | None = None
    array_parallelism: int = 256
    signal_delay_s: int = 120
    max_requeues: int = 100
    setup: Sequence[str] | None = None
    srun_args: Sequence[str] | None = None
    additional_parameters: Mapping[str, object] | None = None
    wait: bool = True
    poll_s: float = 5.0

    def __post_init__(self) -> None:
        for name, least in [
            *((name, 1) for name in NUMBERS),
            ("gpus_per_task", 1),
            ("signal_delay_s", 0),
            ("max_requeues", 0),
        ]:
            value = getattr(self, name)
            if value is None and type(self).__dataclass_fields__[name].default is None:
                continue
            require(type(value) is int, f"{WHERE}.{name}", value, "must be a whole number")
            require_number(f"{WHERE}.{name}", value, least, MOST)
        for name in WORDS:
            value = getattr(self, name)
            require(
                value is None or (isinstance(value, str) and value.isprintable() and value != ""),
                f"{WHERE}.{name}",
                value,
                "must be a text of one line",
            )
        for name in ("setup", "srun_args"):
            value = getattr(self, name)
            require(
                value is None
                or (not isinstance(value, str) and all(isinstance(line, str) for line in value)),
                f"{WHERE}.{name}",
                value,
                "must be a list of texts",
            )
        given = self.additional_parameters or {}
        require(
            isinstance(given, Mapping),
            f"{WHERE}.additional_parameters",
            given,
            "must be a mapping from options of sbatch to values, as in {reservation: mine}",
        )
        for key, value in given.items():
            require(
                bool(PARAMETER.fullmatch(str(key).replace("_", "-"))) and "\n" not in str(value),
                f"{WHERE}.additional_parameters",
                key,
                "must be the name of an option of sbatch, with a value of one line",
            )
        require(type(self.wait) is bool, f"{WHERE}.wait", self.wait, "must be true or false")
        for name in ("mem_gb", "poll_s"):
            value = getattr(self, name)
            require(
                (value is None and name == "mem_gb")
                or (type(value) in (int, float) and 0 < value <= MOST_SECONDS),
                f"{WHERE}.{name}",
                value,
                "must be a number above 0",
            )

    def node_count(self, workers: int) -> int:
        """Return the nodes of a job. Raises `ValueError` if `nodes` is set and cannot be met."""
        require_number("workers", workers, 1, MOST_WORKERS)
        needed = -(-workers // self.tasks_per_node)
        # A job of one worker, such as the baseline, needs one node whatever the others need.
        if self.nodes is None or workers == 1:
            return needed
        require(
            needed <= self.nodes <= workers,
            f"{WHERE}.nodes",
            self.nodes,
            f"must be from {needed} to {workers} for workers={workers} with tasks_per_node={self.tasks_per_node}",
        )
        return self.nodes


def folder_of(job: Job) -> Path:
    """Return the folder of a job's script, output and errors."""
    return job.run_dir / FOLDER


def sbatch_options(job: Job, slurm: Slurm) -> dict[str, str]:
    """Return the options of sbatch for a job, by name; an empty value is a flag."""
    options: dict[str, object] = {
        "job-name": job.label,
        "output": f"{str(folder_of(job)).replace('%', '%%')}/log-%j.txt",
        "open-mode": "append",
        "requeue": "",
        "nodes": slurm.node_count(job.workers),
        "ntasks": job.workers,
        "ntasks-per-node": min(job.workers, slurm.tasks_per_node),
        "cpus-per-task": slurm.cpus_per_task or job.config.cluster.threads,
        "time": slurm.timeout_min,
        "signal": f"USR1@{slurm.signal_delay_s}" if slurm.signal_delay_s else None,
        "gpus-per-node": slurm.gpus_per_node,
        "gpus-per-task": slurm.gpus_per_task,
        "mem": None if slurm.mem_gb is None else f"{round(slurm.mem_gb * 1024)}M",
        **{name: getattr(slurm, name) for name in WORDS if name != "module"},
        **{str(key).replace("_", "-"): value for key, value in (slurm.additional_parameters or {}).items()},
    }
    return {
        name: "" if value is True else str(value)
        for name, value in options.items()
        if value not in (None, False)
    }


def batch_script(job: Job, slurm: Slurm, working_dir: Path) -> str:
    """Return the text of a job's batch script. `working_dir` is that of the sweep."""
    options = sbatch_options(job, slurm)
    srun = [
        "srun",
        "--kill-on-bad-exit=0",  # else srun's own signal would look like one that asks the run to stop
        f"--wait={STRAGGLER_S}",
        f"--cpus-per-task={options['cpus-per-task']}",  # not taken over from sbatch since Slurm 22.05
        *(slurm.srun_args or ()),
    ]
    command = [sys.executable, "-m", slurm.module or started_module(), *job.overrides]
    own = [override for override in job.overrides if not override.startswith("hydra.run.dir=")]
    again = ["srun", f"--ntasks={job.workers}", "python", *command[1:3], *own]
    lines = [
        "#!/bin/bash",
        *(
            f"#SBATCH --{name}" + (f"={shlex.quote(value)}" if value else "")
            for name, value in options.items()
        ),
        f"cd {shlex.quote(str(working_dir))} || exit 1",
        f"export OMP_NUM_THREADS={job.config.cluster.threads}",
        f"export {COMMAND}={shlex.quote(shlex.join(again))}",
        f"export {ERROR_FOLDER}={shlex.quote(str(folder_of(job)))}",
        f'rm -f "${ERROR_FOLDER}"/error-*.json',
        *(slurm.setup or ()),
        shlex.join(srun) + " \\",
        f"    {shlex.join(command)}",
        "code=$?",
        f'if [ "$code" -eq {STOPPED} ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {slurm.max_requeues} ]; then',
        '    scontrol requeue "$SLURM_JOB_ID" && sleep 600 # until Slurm ends this script',
        "fi",
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"
