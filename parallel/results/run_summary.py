"""The summary of one finished run that a tracker shows: epoch times, throughput, speedup within its
sweep."""

from __future__ import annotations

from pathlib import Path

from parallel.results.comparison import baseline_of, epoch_times, median_of
from parallel.results.record_files import find_records
from parallel.results.records import Record
from parallel.results.statistics import Speedup, speedup, summarise


def run_summary(record: Record, sweep_dir: Path | None) -> dict[str, float | str]:
    """Return the summary by name: `epoch_seconds/median`, `speedup`, and so on.

    Where there is no speedup, `speedup_note` says why: a finished run does not fail because of
    other records.
    """
    summary: dict[str, float | str] = {"restarts": record.restarts, "lost_seconds": record.lost_s}
    if not epoch_times([record]):
        return summary | {"speedup_note": "no epoch was trained in one piece by this run"}
    times = summarise(epoch_times([record]))
    names = ("min", "q1", "median", "mean", "q3", "max")
    for name, value in zip(names, times.as_tuple(), strict=True):
        summary[f"epoch_seconds/{name}"] = value
    rate = median_of([record], "images_per_second")
    if rate is not None:
        summary["images_per_second"] = rate
    if sweep_dir is None:
        return summary | {"speedup_note": "the run belongs to no sweep"}
    try:
        ratio = speedup_in_sweep(record, sweep_dir)
    except ValueError as error:
        return summary | {"speedup_note": str(error)}
    if ratio is None:
        return summary | {
            "speedup_note": "no baseline with the same workload, hardware and threads had finished"
        }
    summary |= {"speedup": ratio.ratio, "efficiency": ratio.ratio / record.workers}
    if ratio.low is not None and ratio.high is not None:
        summary |= {"speedup_low": ratio.low, "speedup_high": ratio.high}
    return summary


def speedup_in_sweep(record: Record, sweep_dir: Path) -> Speedup | None:
    """Return the speedup over the baseline among the finished runs in `sweep_dir`. None: no
    baseline has finished.

    Raises `ValueError` if no baseline is found and a record in the folder cannot be read.
    """
    if record.baseline:
        return Speedup(1.0)
    records, errors = find_records([sweep_dir])
    baseline = baseline_of(record, records, record.threads)
    if errors and not baseline:
        raise ValueError(errors[0])
    return speedup(epoch_times(baseline), epoch_times([record])) if baseline else None
