"""Means of the predictions that pooled runs made of themselves.

Runs without a prediction ran under other circumstances, such as before a calibration. A mean over
the others would stand beside the measured times of all, so there is none unless every run has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from parallel.results.records import Record


def predicted_epoch_s(records: Sequence[Record]) -> float | None:
    """Return predicted seconds of an epoch, the mean over the records. None: one has no prediction."""
    return _mean([None if record.predicted is None else record.predicted.epoch_s for record in records])


def predicted_rate(records: Sequence[Record]) -> float | None:
    """Return predicted images per second, the mean over the records. None: one has no prediction."""
    return _mean(
        [
            None if record.predicted is None else (record.workload.batch_size or 0) / record.predicted.step_s
            for record in records
        ]
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean; None if a value is missing, or all are."""
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None
