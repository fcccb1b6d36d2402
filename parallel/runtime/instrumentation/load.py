"""The load of the machines during a run's timed epochs, from the kernel's counters.

The kernel counts the time that each core worked (/proc/stat). What the workers of a host did not use
of it, other processes did. Reading two counters at both ends of an epoch costs no time within it.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from parallel.results.load import Load
from parallel.runtime.instrumentation.group import Group

STAT, CPUINFO = Path("/proc/stat"), Path("/proc/cpuinfo")
BUSY = (0, 1, 2, 5, 6)
"""Columns of a core in /proc/stat: user, nice, system, irq, softirq."""
STEAL = 7
SHORTEST_S = 1.0
"""Less time is not told: the counters have steps of 10 ms at each end of an epoch."""


@dataclass(frozen=True)
class CoreTimes:
    """Seconds that cores were busy, and that the hypervisor took from them."""

    busy_s: float
    steal_s: float


def parse_stat(text: str, cores: Iterable[int], ticks_per_s: float) -> CoreTimes | None:
    """Return the times of some cores in a text like /proc/stat. None: it does not tell."""
    lines = dict(line.split(" ", 1) for line in text.splitlines() if line.startswith("cpu"))
    found = [list(map(int, lines.get(f"cpu{core}", "").split())) for core in cores]
    if any(len(ticks) <= STEAL for ticks in found) or not any(map(sum, found)):
        return None
    return CoreTimes(
        busy_s=sum(ticks[column] for ticks in found for column in BUSY) / ticks_per_s,
        steal_s=sum(ticks[STEAL] for ticks in found) / ticks_per_s,
    )


def parse_clock(text: str) -> float | None:
    """Return the mean clock of the cores in a text like /proc/cpuinfo, in MHz. None: it does not
    tell."""
    values = [float(line.split(":", 1)[1]) for line in text.splitlines() if line.startswith("cpu MHz\t")]
    return sum(values) / len(values) if values else None


@dataclass
class LoadMeter:
    """One worker's part of the measurement: call `begin` and `end` around each timed epoch."""

    part: LoadPart = field(default_factory=lambda: LoadPart(usable_cores()))
    _from: tuple[float, float, CoreTimes | None] = (0.0, 0.0, None)

    def begin(self) -> None:
        """Read the counters at the start of an epoch."""
        self._from = time.perf_counter(), time.process_time(), self._core_times()

    def end(self) -> None:
        """Add an epoch that has just ended."""
        begin_s, own_s, before = self._from
        now = self._core_times()
        part = self.part
        part.seconds += time.perf_counter() - begin_s
        part.own_s += time.process_time() - own_s
        if before is None or now is None:
            part.cores = ()
            return
        part.busy_s += now.busy_s - before.busy_s
        part.steal_s += now.steal_s - before.steal_s
        mhz = parse_clock(CPUINFO.read_text(errors="replace")) if CPUINFO.is_file() else None
        part.clocks += [] if mhz is None else [mhz]

    def of_hosts(self, world: Group, hosts: Iterable[tuple[int, ...]]) -> Load | None:
        """Return the load of the busiest host, on worker 0; `hosts` are the workers of each.

        All workers call it at once. None: not known, or on another worker.
        """
        parts = [LoadPart(*values) for values in world.gather_to_first(dataclasses.astuple(self.part))]
        return load_of([[parts[worker] for worker in workers] for workers in hosts]) if parts else None

    def _core_times(self) -> CoreTimes | None:
        if not self.part.cores or not STAT.is_file():
            return None
        text = STAT.read_text(encoding="ascii", errors="replace")
        return parse_stat(text, self.part.cores, os.sysconf("SC_CLK_TCK"))


@dataclass
class LoadPart:
    """What one worker measured."""

    cores: tuple[int, ...]
    """Cores that it may use. Empty: not known, or the system does not tell their times."""
    seconds: float = 0.0
    own_s: float = 0.0
    """CPU time of the worker itself."""
    busy_s: float = 0.0
    steal_s: float = 0.0
    clocks: list[float] = field(default_factory=list)
    """MHz after each epoch."""


def usable_cores() -> tuple[int, ...]:
    """Return the cores that this process may use. Empty: the system does not tell."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def load_of(hosts: Iterable[Sequence[LoadPart]]) -> Load | None:
    """Return the load of the busiest host from the parts of each one's workers. None: not known."""
    processes, steal, clocks = [], [], []
    for workers in hosts:
        if any(not worker.cores or worker.seconds < SHORTEST_S for worker in workers):
            return None
        others, stolen, cores = 0.0, 0.0, 0
        # Workers are bound to cores of their own, or share all.
        for shared in {worker.cores for worker in workers}:
            own = [worker for worker in workers if worker.cores == shared]
            others += max(0.0, own[0].busy_s - sum(worker.own_s for worker in own)) / own[0].seconds
            stolen += own[0].steal_s / own[0].seconds
            cores += len(shared)
        processes.append(others)
        steal.append(min(1.0, max(0.0, stolen / cores)))
        clocks += [mean(worker.clocks) for worker in workers[:1] if worker.clocks]
    if not processes:
        return None
    return Load(processes=max(processes), steal=max(steal), clock_mhz=min(clocks, default=None))
