"""Notes on the machines of a comparison: where runs of a row or its baseline were made on others, or at
another clock, although their hardware has the same description."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from parallel.results.formatting import percent
from parallel.results.records import Record
from parallel.results.result import Result

MOST_NAMED = 8
"""Rows, or machines of a row, that a note names."""
OTHER_CLOCK = 0.1
"""Relative difference of clocks from which a note names it."""


def several_machines(results: Iterable[Result]) -> Iterable[str]:
    """Name the rows whose runs, or those of whose baseline, were made on several machines.

    Names of hosts do not separate rows: nodes of one cluster are alike and have many.
    """
    found = []
    for result in results:
        own, theirs = _machines(result.records), _machines(result.baseline)
        if len({*own, *theirs}) > 1:
            baseline = f", its baseline on {_some(theirs)}" if theirs and theirs != own else ""
            found.append(f"{result.label} on {_some(own)}{baseline}")
    if found:
        yield f"These runs were made on several machines: {_some(found, '; ')}"


def other_clocks(results: Iterable[Result]) -> Iterable[str]:
    """Name the rows whose machines had another clock than that of their baseline."""
    found = []
    for result in results:
        own, theirs = clock_mhz(result.records), clock_mhz(result.baseline)
        if own is None or theirs is None or abs(own - theirs) <= OTHER_CLOCK * min(own, theirs):
            continue
        found.append(f"{result.label} at {own:,.0f} MHz, its baseline at {theirs:,.0f} MHz")
    if found:
        yield (
            f"Clocks that differ by more than {percent(OTHER_CLOCK, 0)}, as means over all cores, also idle "
            f"ones: {_some(found, '; ')}; these speedups may be those of the clock"
        )


def clock_mhz(records: Iterable[Record]) -> float | None:
    """Return the median clock of the runs' cores in MHz. None: not measured."""
    clocks = [
        record.load.clock_mhz
        for record in records
        if record.load is not None and record.load.clock_mhz is not None
    ]
    return median(clocks) if clocks else None


def _machines(records: Iterable[Record]) -> list[str]:
    """Return the names of the first hosts of the runs; those that are unknown count as none."""
    names = {str(host) for record in records if (host := record.environment.get("host")) is not None}
    return sorted(names)


def _some(names: Sequence[str], between: str = ", ") -> str:
    """Return the first of the names, and how many others there are."""
    more = len(names) - MOST_NAMED
    return between.join([*names[:MOST_NAMED], *([f"{more:,} more"] if more > 0 else [])])
