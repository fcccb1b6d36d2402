"""One run at a time writes into a run directory."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from parallel.results.run_lock import LOCK, locked


def test_a_second_run_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    with locked(tmp_path):
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        with (
            pytest.raises(ValueError, match=re.escape(f"run_dir={tmp_path} must not")) as caught,
            locked(tmp_path),
        ):
            pass
        assert holder in str(caught.value)
        assert (tmp_path / LOCK).read_text() == holder, "the second run has changed nothing"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), locked(tmp_path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        pass


def test_the_lock_ends_with_its_holder_though_its_children_live(tmp_path: Path) -> None:
    """A child such as W&B's server or a decoder."""
    holder = """
import subprocess, sys
from pathlib import Path
from parallel.results.run_lock import locked
with locked(Path(sys.argv[1])):
    child = subprocess.Popen([sys.executable, "-c", "input()"], close_fds=False)
    print(child.pid, flush=True)
    input()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline()
    with pytest.raises(ValueError, match=f"process {process.pid} on "), locked(tmp_path):
        pass
    process.kill()
    process.wait()
    with locked(tmp_path):  # while the child waits for its input
        assert (tmp_path / LOCK).exists()
    process.communicate()


def test_a_lock_that_its_holder_has_just_removed_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flock, removed = tmp_path / LOCK, __import__("fcntl").flock, []

    def late(file: int, how: int) -> None:
        if not removed:
            path.unlink()
            removed.append(path)
        flock(file, how)

    monkeypatch.setattr("fcntl.flock", late)
    with locked(tmp_path):
        assert path.exists() and removed
        monkeypatch.undo()
        with pytest.raises(ValueError, match="must not be written by two runs"), locked(tmp_path):
            pass
