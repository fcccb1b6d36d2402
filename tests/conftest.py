"""Running the project's commands as its users do: in processes of their own, with a time limit."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.workers import Workers

ROOT = Path(__file__).resolve().parent.parent
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "FAKE_JOB")

Start = Callable[..., "subprocess.Popen[str]"]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@contextlib.contextmanager
def starting(folder: Path) -> Iterator[Start]:
    """What starts `python -m …` in `folder`; whatever still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start_one(*arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        variables = {key: value for key, value in os.environ.items() if key not in LAUNCHER_VARIABLES}
        variables |= {"PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1", **(environment or {})}
        process = subprocess.Popen([sys.executable, "-m", *arguments], cwd=folder, env=variables, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        started.append(process)
        return process

    try:
        yield start_one
    finally:
        for process in started:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)  # torchrun and the sweep end their workers on it
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
            process.communicate()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `python -m …` in an empty folder."""
    with starting(tmp_path) as start_one:
        yield start_one


@pytest.fixture
def run(start: Start) -> Run:
    """Run `python -m …` to its end, within `timeout` seconds, and return what it printed."""

    def run_one(*arguments: str, environment: Mapping[str, str] | None = None,
                timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        process = start(*arguments, environment=environment)
        out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run_one


@pytest.fixture
def torchrun(run: Run) -> Run:
    """Run `torchrun --standalone --nproc-per-node N -m …`."""

    def run_one(workers: int, *arguments: str, environment: Mapping[str, str] | None = None,
                timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        return run("torch.distributed.run", "--standalone", f"--nproc-per-node={workers}", "-m", *arguments,
                   environment=environment, timeout=timeout)

    return run_one


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    """Processes that run a function of the test as the workers of a run."""
    pool = Workers()
    yield pool
    pool.stop()
