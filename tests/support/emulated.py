"""Emulated clusters for tests, with a state folder of their own; skipped where the system has none."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from parallel.config.process import Process
from parallel.emulation.cluster import FOLDER, require_system, sweep
from parallel.emulation.holders import inside


def need_emulation() -> None:
    """Skip the test where no cluster can be made."""
    try:
        require_system()
    except ValueError as error:
        pytest.skip(str(error))
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True
    )
    if tried.returncode != 0:
        pytest.skip(f"root may not make namespaces here: {tried.stderr.strip()}")


def use_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Keep the state of clusters in `folder`; return a name for a cluster of this test."""
    monkeypatch.setenv(FOLDER, str(folder))
    return f"test{os.getpid()}"


def remove_all() -> None:
    """Remove the clusters of this test."""
    for cluster in sweep():
        cluster.remove()


def said(host: Process, *command: str, namespaces: Sequence[str] = ("mount", "uts", "net", "pid")) -> str:
    """Return the output of a command in a host."""
    done = subprocess.run(inside(host, namespaces, command), capture_output=True, text=True, timeout=60)
    return done.stdout.strip()


def interfaces() -> set[str]:
    """Return the network interfaces of the machine itself."""
    return set(os.listdir("/sys/class/net"))


def holders() -> set[int]:
    """Return the processes that hold clusters of this test's folder."""
    found = set()
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{entry}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if os.environ[FOLDER].encode() in command:
            found.add(int(entry))
    return found
