"""Measured times beside the predictions that runs made of themselves.

    ratio     median epoch of the pooled runs ÷ median of their predictions
    interval  1 ± e, with e the largest `Predicted.error` of the runs, or `DEFAULT_ERROR` if a run has none
    outside   the ratio lies outside the interval, and the machine was calibrated for the run

For a row outside, `sentence` names the part of an epoch that differs most from its prediction: compute,
exposed communication, idle time or the wait for data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from parallel.results.formatting import percent, seconds
from parallel.results.predicted import Predicted
from parallel.results.records import Record
from parallel.results.validation import MAX_ERROR

DEFAULT_ERROR = MAX_ERROR
"""Relative half-width where no validation of this machine says otherwise: the largest error that
docs/predictions.md aims at."""
UNCALIBRATED = "~"
"""Mark of predictions without a calibration for the runs."""
PARTS = {
    "compute_s": "compute",
    "communication_s": "communication",
    "idle_s": "idle time",
    "data_wait_s": "the wait for data",
}


@dataclass(frozen=True)
class PredictionCheck:
    """The prediction of pooled runs, and their measurement."""

    predicted_s: float
    """Seconds of an epoch."""
    measured_s: float
    error: float
    validated: bool
    """Whether `error` comes from a validation of this machine."""
    calibrated: bool
    """Whether the machine was calibrated for the runs."""
    parts: Mapping[str, float]
    """Predicted seconds of an epoch by key of `PARTS`."""

    @property
    def ratio(self) -> float:
        """Measured ÷ predicted."""
        return self.measured_s / self.predicted_s

    @property
    def outside(self) -> bool:
        """Whether the measurement contradicts the prediction."""
        return self.calibrated and abs(self.ratio - 1) > self.error

    def __str__(self) -> str:
        return (
            f"{self.ratio:.2f}{' !' if self.outside else ''}{'' if self.calibrated else f' {UNCALIBRATED}'}"
        )

    def sentence(self, label: str, measured: Mapping[str, float] | None) -> str:
        """Return a sentence on a row outside its interval. `measured`: seconds of an epoch by key of
        `PARTS`; None: the engine does not record them."""
        basis = "that of its validation" if self.validated else "the default without a validation"
        return (
            f"{label} takes {self.ratio:.2f} × its predicted time, {seconds(self.measured_s)} s instead of "
            f"{seconds(self.predicted_s)}: outside 1 ± {percent(self.error, 0)}, {basis}; "
            f"{self._differing(measured)}"
        )

    def _differing(self, measured: Mapping[str, float] | None) -> str:
        if measured is None:
            return "its engine does not record where the time goes"
        name = max(PARTS, key=lambda part: abs(measured[part] - self.parts[part]))
        return (
            f"{PARTS[name]} differs most: {seconds(measured[name])} s an epoch instead of "
            f"{seconds(self.parts[name])}"
        )


def check_prediction(records: Sequence[Record], measured_s: float) -> PredictionCheck | None:
    """Return the check of pooled runs with this median epoch; None if none of them predicted itself."""
    found: list[Predicted] = [record.predicted for record in records if record.predicted is not None]
    if not found:
        return None
    errors = [predicted.error for predicted in found if predicted.error is not None]
    validated = len(errors) == len(found)
    return PredictionCheck(
        predicted_s=median(predicted.epoch_s for predicted in found),
        measured_s=measured_s,
        error=max(errors) if validated else max([DEFAULT_ERROR, *errors]),
        validated=validated,
        calibrated=all(predicted.calibrated for predicted in found),
        parts={name: fmean(getattr(predicted, name) for predicted in found) for name in PARTS},
    )
