"""A worker ends soon after the launcher that started it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from parallel.cli.process_tree import MARK, marked
from parallel.runtime.failure import launcher as launcher_module
from parallel.runtime.failure.launcher import LAUNCHER as STATED
from parallel.runtime.failure.launcher import launcher_text, watch_launcher
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


# As parallel.torchrun, with a program between it and the worker.
STATING_LAUNCHER = """
import os, subprocess, sys
from parallel.runtime.failure.launcher import LAUNCHER, launcher_text
os.environ[LAUNCHER] = launcher_text(os.environ["TORCHELASTIC_RUN_ID"])
subprocess.run([sys.executable, "-c", sys.argv[2], sys.argv[1]])
"""


@contextmanager
def launched(worker: str, program: str = LAUNCHER, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Start a launcher and its worker; wait until the worker watches."""
    launcher = subprocess.Popen(
        [sys.executable, "-c", program, worker, LAUNCHER],
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


def test_a_worker_ends_with_a_launcher_that_is_not_its_parent() -> None:
    """The program between them runs on."""
    with launched(WORKER, STATING_LAUNCHER, TORCHELASTIC_RUN_ID="x") as launcher:
        (between,) = psutil.Process(launcher.pid).children()
        (worker,) = between.children()
        launcher.kill()
        try:
            wait_for(lambda: worker.status() == psutil.STATUS_ZOMBIE, 60)
            assert between.status() != psutil.STATUS_ZOMBIE
        finally:
            between.kill()
        _, err = launcher.communicate(timeout=60)
        assert err == f"error: worker 0 ends: its launcher (torchrun, process {launcher.pid}) is gone\n"


def test_a_worker_ends_at_once_if_its_launcher_is_gone_before_it_looks() -> None:
    state = "from parallel.runtime.failure.launcher import launcher_text; print(launcher_text('x'))"
    environment = variables({"TORCHELASTIC_RUN_ID": "x"})
    text = subprocess.run(
        [sys.executable, "-c", state], env=environment, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    late = WORKER.replace("GRACE_S = 0.2", "GRACE_S = 600")
    done = subprocess.run(
        [sys.executable, "-c", late],
        env=environment | {STATED: text},
        capture_output=True,
        text=True,
        timeout=60,
    )
    pid = json.loads(text)[0]
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: worker 0 ends: its launcher (torchrun, process {pid}) is gone\n"


@pytest.mark.parametrize(("place", "other"), [(2, "another machine"), (3, "another run")])
def test_a_launcher_that_is_not_of_this_worker_is_not_looked_at(
    place: int, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    monkeypatch.setattr(launcher_module, "_end", ended.append)
    monkeypatch.setattr(launcher_module, "_watch", lambda runs, sentence: None)
    stated = json.loads(launcher_text("x"))
    stated[1] = "gone"
    for values in (stated, [*stated[:place], other, *stated[place + 1 :]]):
        watch_launcher({"TORCHELASTIC_RUN_ID": "x", STATED: json.dumps(values)})
    only_the_first = f"worker 0 ends: its launcher (torchrun, process {os.getpid()}) is gone"
    assert ended == [only_the_first]


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


JOB = ("-m", "tests.support.fake_job", "strategy=single")


@pytest.mark.parametrize(
    "worker",
    [JOB, ("--no-python", "sh", "-c", f"{shlex.join([sys.executable, *JOB])}; true")],
    ids=["child", "grandchild"],
)
def test_a_single_worker_under_torchrun_ends_with_it(
    worker: tuple[str, ...], start: Start, tmp_path: Path
) -> None:
    """The worker neither waits for others nor opens a world."""
    process = start(
        "parallel.torchrun",
        "--nproc-per-node=1",
        *worker,
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
