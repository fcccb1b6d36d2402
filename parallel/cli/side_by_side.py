"""Run several commands at the same time, each on cores or GPUs of its own.

A machine is divided into as many shares as commands run at a time. The lines that a command prints
follow its name, so that the outputs can be told apart.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parallel.cli.process_tree import Tree, continued, stops_ignored, stops_raise
from parallel.config import require

TOPOLOGY = Path("/sys/devices/system/cpu")
POLL_S = 0.1
"""Interval at which the commands are looked at."""
DRAIN_S = 5.0
"""Time to wait for the last lines of a command that has ended."""


@dataclass(frozen=True)
class Share:
    """A part of the machine."""

    cores: tuple[int, ...]
    gpus: tuple[str, ...] = ()
    """As CUDA_VISIBLE_DEVICES names them."""

    def environment(self) -> dict[str, str]:
        """Return the variables that restrict a command to this share's GPUs."""
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)} if self.gpus else {}


@dataclass(frozen=True)
class Task:
    """A command to run."""

    name: str
    """Printed before each of its lines."""
    command: Sequence[str]
    environment: Mapping[str, str]


Start = Callable[[Share], Task]
"""Prepare a command, as it is about to be started on a share."""
Ended = Callable[[int, int, float], bool]
"""Called with the number of a command, its exit code and its seconds; returns whether to start more."""


def divide(jobs: int, cores: Sequence[int], gpus: Sequence[str], needs: tuple[int, int]) -> list[Share]:
    """Return `jobs` disjoint shares with the cores and GPUs that a job `needs` (cores, GPUs).

    With GPUs, each share has an equal part of all cores. Raises `ValueError` if there are too few.
    """
    for noun, needed, there in (("core", needs[0], cores), ("GPU", needs[1], gpus)):
        require(
            jobs * needed <= len(there),
            "hydra.launcher.jobs",
            jobs,
            f"needs {jobs} × {needed} {noun}s for the largest jobs of this sweep, and this machine has "
            f"{len(there)}: at most {len(there) // max(1, needed)} of them fit side by side",
        )
    width = len(cores) // jobs if needs[1] else needs[0]
    return [
        Share(
            tuple(cores[place * width : (place + 1) * width]),
            tuple(gpus[place * needs[1] : (place + 1) * needs[1]]),
        )
        for place in range(jobs)
    ]


def gpu_names(shown: str | None, visible: int) -> list[str]:
    """Return the names of this machine's GPUs for the variable CUDA_VISIBLE_DEVICES of jobs.

    `shown` is its value here, and `visible` the number of GPUs that torch sees. Of slices of GPUs (MIG), a
    process sees the first alone, but each job may have another.
    """
    if shown is None:
        return [str(i) for i in range(visible)]
    names = [name.strip() for name in shown.split(",") if name.strip()]
    slices = [name for name in names if name.startswith("MIG-")]
    return slices if visible and slices == names else names[:visible]


def usable_cores(topology: Path = TOPOLOGY) -> list[int]:
    """Return the cores that this process may use, neighbours in the hardware side by side: the
    threads of a core, then the cores of a package.

    Raises `ValueError` on systems that cannot restrict a process to cores.
    """
    if not hasattr(os, "sched_getaffinity"):
        raise ValueError("hydra.launcher.jobs needs Linux: this system cannot restrict a job to cores")
    return sorted(os.sched_getaffinity(0), key=lambda core: (*_place(topology / f"cpu{core}"), core))


def _place(folder: Path) -> tuple[int, int]:
    """Return package and core of a logical core; zeros if the kernel does not tell."""
    files = [folder / "topology" / name for name in ("physical_package_id", "core_id")]
    if not all(file.is_file() for file in files):
        return 0, 0
    package, core = (int(file.read_text()) for file in files)
    return package, core


def run_side_by_side(starts: Sequence[Start], shares: Sequence[Share], grace_s: float, ended: Ended) -> None:
    """Run the commands in order, as many at a time as there are shares.

    After Ctrl-C or SIGTERM, all process trees are terminated, and killed if they have not ended
    within `grace_s` seconds; so is the tree of a command that fails.
    """
    waiting, free = deque(enumerate(starts)), deque(shares)
    running: dict[int, _Running] = {}
    with stops_raise():
        try:
            while waiting or running:
                while waiting and free:
                    number, start = waiting.popleft()
                    running[number] = _Running(free.popleft(), grace_s)
                    running[number].start(start)
                time.sleep(POLL_S)
                for number, command in list(running.items()):
                    code = command.poll()
                    if code is None:
                        continue
                    del running[number]
                    free.append(command.share)
                    if not ended(number, code, command.seconds):
                        waiting.clear()
        except BaseException:
            with stops_ignored():
                ends = [threading.Thread(target=command.end) for command in running.values()]
                for thread in ends:
                    thread.start()
                for thread in ends:
                    thread.join()
            raise


class _Running:
    """A command on its share."""

    def __init__(self, share: Share, grace_s: float) -> None:
        self.share = share
        self._tree = Tree(grace_s)
        self._began = time.monotonic()
        self._stack = contextlib.ExitStack()

    def start(self, start: Start) -> None:
        task = start(self.share)
        with _on_cores(self.share.cores):
            self._process = self._tree.start(task.command, task.environment, subprocess.PIPE)
        self._reader = threading.Thread(target=self._read, args=(task.name,), daemon=True)
        self._reader.start()
        self._stack.enter_context(continued(self._process.pid))

    def poll(self) -> int | None:
        """Return the exit code of an ended command, after its last line; None while it runs."""
        code = self._process.poll()
        if code is not None:
            if code != 0:
                self._tree.end()
            self._close()
        return code

    def end(self) -> None:
        """End the process tree."""
        self._tree.end()
        self._close()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def _close(self) -> None:
        self._stack.close()
        if hasattr(self, "_reader"):
            self._reader.join(DRAIN_S)  # a process that outlived the command may keep the pipe open

    def _read(self, name: str) -> None:
        assert self._process.stdout is not None, "started with a pipe"
        for line in self._process.stdout:
            print(f"{name} {line.decode(errors='replace')}", end="", flush=True)


@contextlib.contextmanager
def _on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Restrict this thread to `cores`, and so the processes that it starts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
