"""Baselines: which runs on one worker a result is compared with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from parallel.results.environment import describe_emulated, describe_machine
from parallel.results.records import Record
from parallel.results.settings import Settings, settings_of, speed_settings


def hardware(record: Record) -> str:
    """Return the kind of device of a run, with the cores and memory of a CPU's machine, the emulated
    cluster if it had one, and the number of jobs that shared the machine. Times on different kinds are
    not compared."""
    kind = record.device.split(":")[0]
    names = record.environment.get("gpus") if kind == "cuda" else [record.environment.get("cpu")]
    known = ", ".join(sorted({str(name) for name in names or [] if name}))
    device = f"{kind}: {known or 'unknown'}" if names else kind
    # Many machines of a cloud have a processor of the same name.
    machine = describe_machine(record.environment) if kind == "cpu" else ""
    device = f"{device}, {machine}" if machine else device
    emulated = record.environment.get("emulated")
    device = f"{device}, {describe_emulated(emulated)}" if emulated else device
    return (
        f"{device}, {record.environment['side_by_side']} jobs side by side" if record.side_by_side else device
    )


def is_timed(record: Record) -> bool:
    """Return whether a run trained an epoch in one piece."""
    return any(epoch.timed for epoch in record.epochs)


def baseline_of(record: Record, records: Iterable[Record], threads: int | None) -> tuple[Record, ...]:
    """Return the runs among `records` that are the baseline of `record` at `threads` threads; maybe
    none."""
    alike = (r for r in records if r.workload == record.workload and hardware(r) == hardware(record))
    return Baselines(alike).of(settings_of(record), threads)


class Baselines:
    """The baselines among runs of one workload on one kind of hardware."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._runs: dict[tuple[int | None, Settings], dict[frozenset[Any], list[Record]]] = {}
        for record in records:
            if record.baseline and not record.side_by_side and is_timed(record):
                settings = settings_of(record)
                same_speed = self._runs.setdefault((record.threads, speed_settings(settings)), {})
                same_speed.setdefault(frozenset(settings), []).append(record)

    def of(self, settings: Settings, threads: int | None) -> tuple[Record, ...]:
        """Return the runs with `threads` threads whose settings differ in the fewest from `settings`,
        and in none that changes speed; maybe none."""
        groups = self._runs.get((threads, speed_settings(settings)), {})
        wanted = frozenset(settings)
        nearest = min(groups, key=lambda found: len(wanted ^ found), default=wanted)
        return tuple(groups.get(nearest, ()))
