"""No process of a command's tree is left after it fails or is stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from parallel.cli import process_tree
from tests.support.waiting import wait_for

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print('up', flush=True); time.sleep(600)"
)
PARENT = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
open(sys.argv[1], "w").write(str(child.pid))
{{then}}
"""


def test_the_exit_code_comes_back() -> None:
    assert process_tree.run([sys.executable, "-c", "raise SystemExit(0)"], os.environ, 1.0) == 0
    assert process_tree.run([sys.executable, "-c", "raise SystemExit(7)"], os.environ, 1.0) == 7


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems hide environments")
def test_a_failed_command_leaves_no_child(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = process_tree.run(
        [sys.executable, "-c", PARENT.format(then="sys.exit(3)"), str(note)], os.environ, 0.2
    )
    assert code == 3
    assert not process_tree.runs(int(note.read_text()))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems hide environments")
@pytest.mark.parametrize(
    "nohup, sign, code",
    [
        (False, signal.SIGINT, -signal.SIGINT),
        (False, signal.SIGTERM, 143),
        (False, signal.SIGHUP, 129),
        (True, signal.SIGTERM, 143),
    ],
)
def test_a_stopped_command_leaves_no_process(
    nohup: bool, sign: signal.Signals, code: int, tmp_path: Path
) -> None:
    note = tmp_path / "pid"
    script = PARENT.format(then=STUBBORN)
    program = (
        "import os, sys; from parallel.cli import process_tree; "
        "process_tree.run([sys.executable, '-c', sys.argv[1], sys.argv[2]], os.environ, 0.2)"
    )
    runner = subprocess.Popen(
        [*["nohup"] * nohup, sys.executable, "-c", program, script, str(note)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    try:
        assert runner.stdout is not None and runner.stdout.readline() == b"up\n"
        child = int(note.read_text())
        (command,) = psutil.Process(runner.pid).children()
        assert process_tree.runs(child)
        (ignored,) = re.findall(r"SigIgn:\s*(\w+)", Path(f"/proc/{runner.pid}/status").read_text())
        assert int(ignored, 16) >> (signal.SIGHUP - 1) & 1 == nohup
        runner.send_signal(sign)
        assert runner.wait(30) == code
        assert not process_tree.runs(child) and not process_tree.runs(command.pid)
    finally:
        runner.kill()
        runner.wait()
        if runner.stdout is not None:
            runner.stdout.close()


def test_a_zombie_has_ended() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "input()"],
        stdin=subprocess.PIPE,
        env={**os.environ, process_tree.MARK: "zombie"},
    )
    try:
        # The environment of a new program is readable a moment after Popen returns.
        wait_for(lambda: process_tree.marked("zombie") == [process.pid], 10)
        assert process_tree.runs(process.pid)
    finally:
        process.kill()
    wait_for(lambda: not process_tree.runs(process.pid), 10)
    assert process_tree.marked("zombie") == []
    assert psutil.pid_exists(process.pid), "the zombie is still in the table of processes"
    process.communicate()
    assert not process_tree.runs(process.pid)


def test_a_stopped_command_whose_children_have_ended_is_continued(tmp_path: Path) -> None:
    """Like a torchrun that is stopped while its workers run, and whose workers then end."""
    child = "import sys, time; time.sleep(2); open(sys.argv[2], 'w')"
    script = f"""
import os, signal, subprocess, sys
open(sys.argv[1], "w").write(str(os.getpid()))
child = subprocess.Popen([sys.executable, "-c", {child!r}, *sys.argv[1:]])
os.kill(os.getpid(), signal.SIGSTOP)
sys.exit(7 if child.poll() is not None else 8)
"""
    stopped, ended = tmp_path / "stopped", tmp_path / "ended"
    limit = threading.Timer(60, lambda: os.kill(int(stopped.read_text()), signal.SIGKILL))
    limit.start()
    code = process_tree.run([sys.executable, "-c", script, str(stopped), str(ended)], os.environ, 1.0)
    limit.cancel()
    assert code == 7 and ended.exists()


def test_a_command_may_end_with_the_process_that_runs_it(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = (
        "import os, sys, time; from parallel.cli import process_tree; process_tree.end_with_parent(); "
        "open(sys.argv[1], 'w').write(str(os.getpid())); print('up', flush=True); time.sleep(600)"
    )
    program = (
        "import os, sys; from parallel.cli import process_tree; "
        "process_tree.run([sys.executable, '-c', *sys.argv[1:]], os.environ, 0.2)"
    )
    runner = subprocess.Popen(
        [sys.executable, "-c", program, script, str(note)], stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert runner.stdout is not None and runner.stdout.readline() == b"up\n"
    runner.kill()
    _, err = runner.communicate(timeout=60)  # until the command has closed its standard error, too
    assert err.decode() == f"error: the sweep (process {runner.pid}) is gone: its job ends\n"
    wait_for(lambda: not process_tree.runs(int(note.read_text())), 10)
