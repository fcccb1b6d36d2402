"""Progress of a calibration with a countdown: a bar on a terminal, elsewhere lines."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

FIXED_S, STEPS = 5.0, 61
"""A calibration measures some calibrate.budget_s + `FIXED_S` seconds and `STEPS` steps of the model."""
LINE_EVERY_S = 10.0
"""Seconds between lines where there is no terminal."""


def expected_s(budget_s: float, step_s: float) -> float:
    """Return about how many seconds a calibration measures if a step of the model takes `step_s`."""
    return budget_s + FIXED_S + STEPS * step_s


class PhaseProgress:
    """Shows the phase of a calibration, and about how many seconds are left; silent unless enabled,
    which it is on worker 0 alone."""

    def __init__(self, console: Console, enabled: bool) -> None:
        self._console = console
        self._enabled = enabled
        self._bar = (
            Progress(TextColumn("{task.description}"), BarColumn(), console=console, transient=True)
            if enabled and console.is_terminal
            else None
        )
        self._task: TaskID | None = None
        self._name = ""
        self._begin = self._told = time.perf_counter()
        self._expected_s = 0.0

    def __enter__(self) -> PhaseProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def expect(self, seconds: float) -> None:
        """State how many seconds the whole calibration takes from now on: the countdown begins."""
        self._begin, self._expected_s = time.perf_counter(), seconds

    def phase(self, name: str) -> None:
        """Start a new phase."""
        self._name = name
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(self._line(), total=1.0)
        else:
            self._print()

    def done(self, share: float) -> None:
        """Set the completed share of the phase, from 0 to 1."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=min(1.0, share), description=self._line())
        elif time.perf_counter() - self._told >= LINE_EVERY_S:
            self._print()

    def note(self, line: str) -> None:
        """Print a line."""
        if self._enabled:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _line(self) -> str:
        left = self._expected_s - (time.perf_counter() - self._begin)
        if not self._expected_s:
            return self._name
        return f"{self._name}, {'some seconds' if left < 1 else f'about {left:.0f} s'} left"

    def _print(self) -> None:
        self._told = time.perf_counter()
        if self._enabled:
            self._console.print(self._line(), highlight=False, markup=False, soft_wrap=True)
            self._console.file.flush()
