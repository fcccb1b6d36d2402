"""When a checkpoint is due."""

from __future__ import annotations

LOOKS = 16
"""Minimum number of looks at the clock in an interval in minutes: steps may become slower."""


class Schedule:
    """Decides after which steps a checkpoint is saved; equal on all workers without communication.

    For intervals in minutes the workers look at a common clock, at steps that they all know: each
    look tells at which step the next one is worth it.
    """

    def __init__(self, interval: tuple[int, str] | None, steps_per_epoch: int, first_step: int) -> None:
        """`interval` is a number and a unit: epoch, step or minute. None: never."""
        self._number, self._unit = interval or (0, "never")
        self._epoch = steps_per_epoch
        self.saved(first_step)

    def looks(self, step: int) -> bool:
        """Return whether the workers must agree on the time after `step` steps, and call `due` with
        it."""
        return self._unit == "minute" and step >= self._next_look

    def due(self, step: int, seconds: float = 0.0) -> bool:
        """Return whether a checkpoint is due after `step` steps.

        `seconds`: time since the last checkpoint, or since the start, where `looks` is true.
        """
        if self._unit == "epoch":
            return step % (self._number * self._epoch) == 0
        if self._unit == "step":
            return step % self._number == 0
        return self.looks(step) and self._is_time(step, seconds)

    def saved(self, step: int) -> None:
        """Note that a checkpoint was saved after `step` steps."""
        self._looked = (step, 0.0)
        self._next_look = step + 1

    def _is_time(self, step: int, seconds: float) -> bool:
        last_step, last_seconds = self._looked
        self._looked = (step, seconds)
        interval = 60.0 * self._number
        rest = interval - seconds
        step_s = (seconds - last_seconds) / (step - last_step)
        if rest < step_s / 2:
            return True
        ahead = min(rest / 2, interval / LOOKS)
        self._next_look = step + max(1, round(ahead / max(step_s, 1e-6)))
        return False
