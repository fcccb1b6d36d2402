"""The prediction that a run makes of itself before its first step, as its record keeps it."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.config import require, require_number
from parallel.config.checks import MOST_SECONDS

MOST_EPOCH_S = 1e9
"""Bound of predicted seconds of an epoch, that of measured ones."""


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Predicted times of a run on the cluster that its machine was calibrated as."""

    epoch_s: float
    """Seconds of an epoch, without validation."""
    step_s: float
    """Seconds of a step, with the wait for data."""
    compute_s: float
    """Seconds per epoch, a mean over the workers, as are the next three; all as in `Epoch`."""
    communication_s: float
    """Exposed communication only: not overlapped with compute."""
    idle_s: float
    data_wait_s: float
    cluster: str
    """Name of the cluster description."""
    calibrated: bool
    """Whether a calibration of this machine measured the shapes of this run. False: some were
    predicted by a regression or from data sheets, or the machine is another one."""
    error: float | None = None
    """Half-width, relative to the prediction, within which a validation found 95 % of the measured
    times. None: not validated on this machine."""

    def __post_init__(self) -> None:
        require(0 < self.epoch_s <= MOST_EPOCH_S, "epoch_s", self.epoch_s, "must be a time above 0 s")
        require(0 < self.step_s <= MOST_SECONDS, "step_s", self.step_s, "must be a time above 0 s")
        for name in ("compute_s", "communication_s", "idle_s", "data_wait_s"):
            require_number(name, getattr(self, name), 0, MOST_EPOCH_S)
        require_number("error", self.error, 0, 100)
