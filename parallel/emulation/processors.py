"""Control groups that limit the processor time of each host of a cluster.

Version 1 of the kernel's interface has a hierarchy for each controller; version 2 has one for all,
where a group's parent must hand on the controller.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

PERIOD_US = 10_000
"""Period in which a host gets its share. With the kernel's default of 100 ms a slow host would stand
still for many milliseconds at a time, which no slow processor does."""
SHORTEST_US = 1000
"""The kernel's smallest quota of a period."""
PREFIX = "parallel-emulation-"
EMPTY_S = 5.0
"""Time in which the processes of a group that were killed must have left it."""


@dataclass(frozen=True)
class Processors:
    """The control groups of a cluster: one folder, and one in it for each host."""

    version: int
    path: str

    @property
    def folder(self) -> Path:
        """Folder of the groups."""
        return Path(self.path)

    @staticmethod
    def find(cluster: str, mounts: Path = Path("/proc/self/mounts")) -> Processors | None:
        """Return where the groups of a cluster belong, or None where no group can limit time."""
        unified = None
        for line in mounts.read_text().splitlines():
            _, point, kind, options, *_ = line.split()
            if not os.access(point, os.W_OK):  # the mapped root of a user namespace
                continue
            if kind == "cgroup" and "cpu" in options.split(","):
                return Processors(1, f"{point}/{PREFIX}{cluster}")
            if kind == "cgroup2" and "cpu" in (Path(point) / "cgroup.controllers").read_text().split():
                unified = Processors(2, f"{point}/{PREFIX}{cluster}")
        return unified

    def group(self, host: int) -> Path:
        """Return the folder of a host's group."""
        return self.folder / f"host{host}"

    def make(self, hosts: int) -> None:
        """Make the groups."""
        self.folder.mkdir(exist_ok=True)
        if self.version == 2:
            for parent in (self.folder.parent, self.folder):
                (parent / "cgroup.subtree_control").write_text("+cpu")
        for host in range(hosts):
            self.group(host).mkdir(exist_ok=True)

    def limit(self, host: int, cores: float | None) -> None:
        """Give a host's processes the time of so many cores; None: no limit."""
        period = PERIOD_US if cores is None else max(PERIOD_US, math.ceil(SHORTEST_US / cores))
        quota = None if cores is None else round(cores * period)
        group = self.group(host)
        if self.version == 2:
            (group / "cpu.max").write_text(f"{'max' if quota is None else quota} {period}")
            return
        (group / "cpu.cfs_quota_us").write_text("-1")  # any quota is valid with any period only then
        (group / "cpu.cfs_period_us").write_text(str(period))
        (group / "cpu.cfs_quota_us").write_text(str(-1 if quota is None else quota))

    def remove(self) -> None:
        """Remove the groups, whose processes have been killed. Raises `ValueError` if some are left."""
        deadline = time.monotonic() + EMPTY_S
        while self.folder.exists():
            for group in [*self.folder.glob("host*"), self.folder]:
                with contextlib.suppress(OSError):  # not empty yet, or gone already
                    os.rmdir(group)
            if time.monotonic() > deadline:
                raise ValueError(f"{self.folder} still has processes that were killed")
            time.sleep(0.01)
