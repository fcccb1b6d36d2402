"""Progress of a run: a bar on a terminal, otherwise a line per epoch.

One rank calls `step` in its training loop, where it must not take time: it counts, draws at most
twice per second, and starts no thread.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from parallel.results.records import Epoch

DRAW_EVERY_S = 0.5
"""Seconds between drawings. One takes about a millisecond, so drawing takes 0.2 % of the time."""


class Progress:
    """The progress of one run of `epochs` × `steps_per_epoch` steps of `batch_size` images.

    `done` steps were trained before. It shows nothing unless `enabled`, which should be set on one rank only.
    """

    def __init__(
        self,
        epochs: int,
        steps_per_epoch: int,
        label: str,
        *,
        batch_size: int,
        done: int = 0,
        enabled: bool = True,
        console: Console | None = None,
    ) -> None:
        self._epochs, self._steps, self._label, self._batch = epochs, steps_per_epoch, label, batch_size
        self._console = console or Console(file=sys.stdout, highlight=False)
        self._enabled = enabled
        self._live = (
            Live(console=self._console, auto_refresh=False, transient=True)
            if enabled and self._console.is_terminal
            else None
        )
        self._started = self._drawn = self._epoch_started = time.perf_counter()
        self._first = self._done = done
        self._epoch_base = 0
        self._loss: float | None = None
        self._epoch = 0

    def step(self, epoch: int, step: int, loss: Callable[[], float | None] | None = None) -> None:
        """Count step `step` of epoch `epoch` as done; both start at 1.

        `loss` returns that of all workers, or None while it is unknown. It is called only when the bar
        is drawn.
        """
        if self._live is None:
            return
        now = time.perf_counter()
        if epoch != self._epoch:
            self._epoch, self._epoch_started, self._epoch_base = epoch, now, (epoch - 1) * self._steps + step
        self._done = (epoch - 1) * self._steps + step
        if now - self._drawn >= DRAW_EVERY_S:
            if loss is not None:
                self._loss = loss()
            parts = [f"epoch {epoch}/{self._epochs}  step {step}/{self._steps}"]
            if self._loss is not None:
                parts.append(f"loss {self._loss:.3f}")
            if now > self._epoch_started:
                # The clock of an epoch starts at the end of the first step that was reported.
                images = (self._done - self._epoch_base) * self._batch
                parts.append(f"{images / (now - self._epoch_started):.0f} images/s")
            self._draw(now, "  ".join(parts))

    def loss(self, epoch: int, step: int, mean: float) -> None:
        """Show the mean loss of the last steps, over all workers: in the bar, or else as a line."""
        self._loss = mean
        if self._enabled and self._live is None:
            line = f"{self._label}  epoch {epoch}/{self._epochs}  step {step}/{self._steps}  loss {mean:.4f}"
            self._console.print(Text(line), soft_wrap=True)
            self._console.file.flush()

    def phase(self, name: str) -> None:
        """Show a phase other than training steps: `validation`, `warm-up`."""
        if self._live is not None:
            self._draw(time.perf_counter(), name)

    def epoch(self, epoch: Epoch) -> None:
        """Print the line of an epoch that has ended."""
        if self._enabled:
            self._console.print(Text(epoch_line(epoch, self._epochs, self._label)), soft_wrap=True)
            # In a pipe the line would otherwise stay in the buffer until it is full.
            self._console.file.flush()

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def _draw(self, now: float, doing: str) -> None:
        if self._live is None:
            return
        self._drawn = now
        total = self._epochs * self._steps
        parts = [doing]
        if self._done > self._first:
            per_step = (now - self._started) / (self._done - self._first)
            parts.append(f"{clock(per_step * (total - self._done))} left")
        line = Table.grid(padding=(0, 2))
        line.add_row(
            Text(self._label, style="bold"),
            ProgressBar(total=total, completed=self._done, width=24),
            Text("  ".join(parts)),
        )
        self._live.update(line, refresh=True)


def epoch_line(epoch: Epoch, epochs: int, label: str) -> str:
    """Return an epoch as one line, without values that were not measured."""
    parts = [f"{label}  epoch {epoch.epoch}/{epochs}", f"{epoch.seconds:.2f} s"]
    for value, form in (
        (epoch.images_per_second, "{:.1f} images/s"),
        (epoch.train_loss, "loss {:.4f}"),
        (epoch.val_loss, "validation {:.4f}"),
    ):
        if value is not None:
            parts.append(form.format(value))
    if epoch.val_top1 is not None:
        parts.append(f"top-1 {100 * epoch.val_top1:.1f} %")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """Return seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
