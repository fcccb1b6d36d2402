"""Fixtures that start the project's commands and workers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.support.commands import Run, Start, starting
from tests.support.gpu import GPU_REASONS, HiddenGpus
from tests.support.workers import Workers

# A shell that starts the tests in the background ignores Ctrl-C, and every process inherits that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# nohup ignores a hangup. The tests still do, but the commands that they start end on one.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)
# No example is timed: machines are slow at times.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
# Tensors of tests are small, and several tests run at once.
torch.set_num_threads(1)
# torch asks for the name of every address that it connects to, and `::1` is not in every /etc/hosts.
# A query that is lost is repeated after a second instead of five. Commands and workers inherit this.
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:5")
# Tests mean the CPU by cluster.device=auto, also on machines with GPUs.
HIDDEN = HiddenGpus()
HIDDEN.hide()


@pytest.fixture(autouse=True)
def gpus(request: pytest.FixtureRequest) -> Iterator[None]:
    """Show the machine's GPUs to a test that needs one."""
    needed = any(mark.kwargs.get("reason") in GPU_REASONS for mark in request.node.iter_markers("skipif"))
    with HIDDEN.shown() if needed else contextlib.nullcontext():
        yield


@pytest.hookimpl(tryfirst=True)  # before pytest selects by `-m`
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that skip without a GPU, by the reason that they give: `-m gpu` runs them."""
    for item in items:
        if any(mark.kwargs.get("reason") in GPU_REASONS for mark in item.iter_markers("skipif")):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `python -m …` in an empty folder."""
    with starting(tmp_path) as start_one:
        yield start_one


@pytest.fixture
def run(start: Start) -> Run:
    """Run `python -m …` to its end, within `timeout` seconds, and return its exit code and output."""

    def run_one(
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        timeout: float = 600.0,
        real: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        process = start(*arguments, environment=environment, real=real)
        out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run_one


@pytest.fixture
def torchrun(run: Run) -> Run:
    """Run `python -m parallel.torchrun --nproc-per-node N -m …`."""

    def run_one(
        workers: int,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        timeout: float = 600.0,
        real: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        return run(
            "parallel.torchrun",
            f"--nproc-per-node={workers}",
            "-m",
            *arguments,
            environment=environment,
            timeout=timeout,
            real=real,
        )

    return run_one


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    """Processes that call a function of the test as the workers of a run."""
    pool = Workers()
    yield pool
    pool.stop()
