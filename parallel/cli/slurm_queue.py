"""Slurm's commands: submit a job, ask how jobs stand, cancel them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parallel.config.stderr import print_to_stderr

COMMAND_S = 120.0
ENDED = frozenset(
    "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED TIMEOUT".split()
)
"""States of a job that has ended, from squeue's manual."""
COMPLETED = "COMPLETED"
NO_JOB = "Invalid job id"
"""Error of squeue if it is asked for a single job that Slurm does not know (any more)."""


class QueueError(Exception):
    """Raised if Slurm's controller does not answer."""


@dataclass(frozen=True)
class JobState:
    """How Slurm says that a job stands."""

    state: str
    """One of squeue's words, such as PENDING."""
    reason: str
    """Why it waits, or None."""
    name: str

    @property
    def ended(self) -> bool:
        """Whether the job has ended. A requeued one has not."""
        return self.state in ENDED

    def __str__(self) -> str:
        waits = self.reason not in ("", "None") and not self.ended
        return self.state.lower() + (f" ({self.reason})" if waits else "")


def require_slurm() -> None:
    """Raise `ValueError` if Slurm's commands are missing."""
    missing = [name for name in ("sbatch", "squeue", "scancel") if shutil.which(name) is None]
    if missing:
        raise ValueError(
            f"hydra/launcher=submitit_slurm needs Slurm, and {', '.join(missing)} cannot be found: start the sweep "
            "where jobs are submitted"
        )


def submit(script: Path, after: str | None) -> str:
    """Submit a batch script and return the job's id.

    `after`: the id of a job after whose end this one may start. Raises `ValueError` with sbatch's
    reason if it is rejected.
    """
    options = [] if after is None else [f"--dependency=afterany:{after}"]
    done = _call(["sbatch", "--parsable", *options, str(script)], own_environment(os.environ))
    job_id = done.stdout.strip().partition(";")[0]
    if done.returncode != 0 or not job_id.isdecimal():
        raise ValueError(sbatch_reason(done.stderr or done.stdout))
    return job_id


def sbatch_reason(text: str) -> str:
    """Return the reason from what sbatch printed."""
    lines = [re.sub(r"^sbatch: (error: )?", "", line).strip() for line in text.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line)) or "sbatch stated no job id"


def own_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the variables of a job in which the sweep itself may run: sbatch
    would take over options from them, and pass them on."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith("SLURM_") or name == "SLURM_CONF"
    }


def states(job_ids: Sequence[str]) -> dict[str, JobState]:
    """Return the states of those jobs that Slurm knows, by id. Raises `QueueError`."""
    if not job_ids:
        return {}
    command = ["squeue", "--noheader", "--states=all", f"--jobs={','.join(job_ids)}", "--format=%i|%T|%r|%j"]
    done = _call(command, own_environment(os.environ))
    if done.returncode != 0:
        if NO_JOB in done.stderr:
            return {}
        raise QueueError(done.stderr.strip() or f"squeue ended with {done.returncode}")
    return read_states(done.stdout)


def read_states(text: str) -> dict[str, JobState]:
    """Return the states from squeue's lines `id|state|reason|name`."""
    found = {}
    for line in text.splitlines():
        job_id, state, reason, name = line.split("|", 3)
        found[job_id.strip()] = JobState(state, reason, name)
    return found


def cancel(job_ids: Sequence[str]) -> None:
    """Cancel jobs; those that have ended already do no harm. Print a warning if Slurm does not answer."""
    if not job_ids:
        return
    try:
        _call(["scancel", *job_ids], own_environment(os.environ))
    except QueueError as error:
        print_to_stderr(f"warning: the jobs {', '.join(job_ids)} may go on: {error}")


def _call(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as error:
        raise QueueError(f"{command[0]} has not answered for {COMMAND_S:g} s") from error
