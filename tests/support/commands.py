"""Starting the project's commands: in processes of their own, with a time limit, in a second instead of ten.

They are forked from a process that has imported torch (`fork_server.py`), unless `real=True` asks for the interpreter.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch.distributed import TCPStore

from tests.support.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "FAKE_JOB")
IMPORTING_S = 120.0
ENDING_S = 30.0

Start = Callable[..., "subprocess.Popen[str]"]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@functools.cache
def forking_python() -> str:
    """Start the fork server of this process and return its executable, to be called like `sys.executable`."""
    folder = Path(tempfile.mkdtemp(prefix="fork_server_"))
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.support.fork_server", str(folder)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    atexit.register(_stop, server, folder)
    wait_for(lambda: (folder / "socket").exists() or server.poll() is not None, IMPORTING_S)
    assert server.poll() is None, "the fork server did not start; its traceback is above"
    return str(folder / "python")


def _stop(server: subprocess.Popen[bytes], folder: Path) -> None:
    # Closes its standard input, on which it ends what it forked, and itself.
    server.communicate(timeout=ENDING_S)
    shutil.rmtree(folder)


def variables(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a command: this process's without a launcher's variables, and `environment`."""
    kept = {key: value for key, value in os.environ.items() if key not in LAUNCHER_VARIABLES}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "WANDB_MODE": "offline",
        "OMP_NUM_THREADS": "1",
        **(environment or {}),
    }


@contextlib.contextmanager
def starting(folder: Path) -> Iterator[Start]:
    """Yield a function that starts `python -m …` in `folder`; whatever still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start_one(
        *arguments: str, environment: Mapping[str, str] | None = None, real: bool = False
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable if real else forking_python(), "-m", *arguments],
            cwd=folder,
            env=variables(environment),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
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


@dataclass(frozen=True)
class Ended:
    """Exit codes by rank, and the output of all ranks together."""

    codes: list[int | None]
    out: str
    err: str


def run_module(
    world: int,
    module: str,
    *arguments: str,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    timeout: float = 600.0,
) -> Ended:
    """Run `python -m module arguments` in `folder`: with `world` 1 as plain python, else as torchrun's workers.

    torchrun itself is left out: no process watches the ranks, and each ends by itself.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            for rank in range(world):
                own = {} if world == 1 else worker_variables(rank, world, store.port)
                processes.append(
                    subprocess.Popen(
                        [forking_python(), "-m", module, *arguments],
                        cwd=folder,
                        env=variables({**own, **(environment or {})}),
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=err,
                    )
                )
            codes: list[int | None] = [process.wait(timeout) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        out.seek(0)
        err.seek(0)
        return Ended(codes, out.read(), err.read())


def worker_variables(rank: int, world: int, port: int) -> dict[str, str]:
    """The variables that torchrun sets for a worker, whose store is there already on `port`."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
