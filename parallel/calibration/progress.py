"""Progress of a calibration: a bar on a terminal, a line for each phase elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class PhaseProgress:
    """Shows the phase of a calibration; silent unless enabled, which it is on worker 0 alone."""

    def __init__(self, console: Console, enabled: bool) -> None:
        self._console = console
        self._enabled = enabled
        self._bar = (
            Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            if enabled and console.is_terminal
            else None
        )
        self._task: TaskID | None = None

    def __enter__(self) -> PhaseProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def phase(self, name: str) -> None:
        """Start a new phase."""
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(name, total=1.0)
        elif self._enabled:
            self._console.print(name, highlight=False)
            self._console.file.flush()

    def done(self, share: float) -> None:
        """Set the completed share of the phase, from 0 to 1."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=min(1.0, share))

    def note(self, line: str) -> None:
        """Print a line."""
        if self._enabled:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
