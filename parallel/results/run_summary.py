"""The summary of one finished run that a tracker shows: epoch times, throughput, speedup within its
sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from parallel.results.baselines import baseline_of
from parallel.results.record_files import find_records
from parallel.results.records import Record
from parallel.results.result import median_of
from parallel.results.runs import Runs, epoch_times
from parallel.results.statistics import Speedup, summarise


def run_summary(record: Record, sweep_dir: Path | None) -> dict[str, float | str]:
    """Return the summary by name: `epoch_seconds/median`, `speedup`, and so on.

    The speedup is that over the baseline among the finished runs in `sweep_dir`. Where there is
    none, `speedup_note` says why: a finished run does not fail because of other records.
    """
    if sweep_dir is None:
        return _summary(record, "the run belongs to no sweep")
    if record.baseline:
        return summary_among(record, [record])
    try:
        records, errors = find_records([sweep_dir])
    except ValueError as error:
        return _summary(record, str(error))
    return summary_among(record, records, errors)


def summary_among(
    record: Record, records: Sequence[Record], errors: Sequence[str] = ()
) -> dict[str, float | str]:
    """Return the summary with the speedup over the baseline among `records`.

    `errors`: why further records could not be read.
    """
    if record.side_by_side:
        return _summary(record, "other jobs ran side by side with this one: times are not compared")
    if record.shares_gpu:
        return _summary(record, "its workers shared a GPU (cluster.share_gpu=true): times are not compared")
    if record.baseline:
        return _summary(record, Speedup(1.0))
    baseline = baseline_of(record, records, record.threads)
    if baseline and epoch_times([record]):
        return _summary(record, Runs([record]).speedup_over(Runs(baseline)))
    missing = "no baseline with the same workload, hardware and threads had finished"
    return _summary(record, errors[0] if errors else missing)


def _summary(record: Record, ratio: Speedup | str) -> dict[str, float | str]:
    """Return the summary with the speedup, or with the reason why there is none."""
    summary: dict[str, float | str] = {"restarts": record.restarts, "lost_seconds": record.lost_s}
    if record.stragglers is not None:
        said = "; ".join(straggler.sentence(len(record.epochs)) for straggler in record.stragglers)
        summary["stragglers"] = said or "none"
    if not epoch_times([record]):
        return summary | {"speedup_note": "no epoch was trained in one piece by this run"}
    times = summarise(epoch_times([record]))
    names = ("min", "q1", "median", "mean", "q3", "max")
    for name, value in zip(names, times.as_tuple(), strict=True):
        summary[f"epoch_seconds/{name}"] = value
    rate = median_of([record], "images_per_second")
    if rate is not None:
        summary["images_per_second"] = rate
    if record.predicted is not None:
        summary["epoch_seconds/predicted"] = record.predicted.epoch_s
        summary["measured/predicted"] = times.median / record.predicted.epoch_s
    if isinstance(ratio, str):
        return summary | {"speedup_note": ratio}
    summary |= {"speedup": ratio.ratio, "efficiency": ratio.ratio / record.workers}
    if ratio.low is not None and ratio.high is not None:
        summary |= {"speedup_low": ratio.low, "speedup_high": ratio.high}
    return summary
