"""A worker ends soon after the launcher that started it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parallel.cli.process_tree import MARK, marked
from tests.support.commands import Start, variables
from tests.support.waiting import wait_for

# Starts a worker as torchrun does, prints its process id, and waits for ever.
LAUNCHER = """
import subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=True)
print(worker.pid, flush=True)
time.sleep(600)
"""
WORKER = """
import os, time
from parallel.runtime.failure import launcher
launcher.GRACE_S = 0.2
launcher.watch_launcher(os.environ)
print("watches", flush=True)
time.sleep(600)
"""


@contextmanager
def launched(worker: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Start a launcher and its worker; wait until the worker watches."""
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, worker],
        env=variables(environment),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert launcher.stdout is not None
    pid, said = sorted(launcher.stdout.readline().strip() for _ in range(2))  # the number sorts first
    assert said == "watches"
    try:
        yield launcher
    finally:
        for process in (int(pid), launcher.pid):
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        launcher.communicate()


def test_a_worker_ends_with_its_launcher() -> None:
    with launched(WORKER, TORCHELASTIC_RUN_ID="x", RANK="3") as launcher:
        launcher.kill()
        _, err = launcher.communicate(timeout=60)  # until the worker has closed its standard error, too
        assert err == f"error: worker 3 ends: its launcher (torchrun, process {launcher.pid}) is gone\n"


def test_a_process_that_torchrun_did_not_start_outlives_its_parent() -> None:
    once = WORKER.replace("time.sleep(600)", "import sys; sys.stdin.read(); time.sleep(1.5); print('lives')")
    environment = variables()
    environment.pop("TORCHELASTIC_RUN_ID", None)
    parent = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]])"
    done = subprocess.run(
        [sys.executable, "-c", parent, once],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["watches", "lives"] and done.stderr == ""


def test_a_single_worker_under_torchrun_ends_with_it(start: Start, tmp_path: Path) -> None:
    """The worker neither waits for others nor opens a world."""
    process = start(
        "parallel.torchrun",
        "--nproc-per-node=1",
        "-m",
        "tests.support.fake_job",
        "strategy=single",
        environment={MARK: tmp_path.name, "FAKE_JOB": json.dumps({"single": "sleep"})},
        real=True,
    )

    def pids() -> list[int]:
        return [int(path.name.removeprefix("pid-")) for path in tmp_path.rglob("pid-*")]

    wait_for(lambda: len(pids()) == 2 or process.poll() is not None, 300)
    process.kill()
    began = time.monotonic()
    child = pids()  # of the fake job, which it does not end
    wait_for(lambda: len(marked(tmp_path.name)) <= 1, 60)
    assert time.monotonic() - began < 60
    for pid in set(child) & set(marked(tmp_path.name)):
        os.kill(pid, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert f"error: worker 0 ends: its launcher (torchrun, process {process.pid}) is gone\n" in err
