"""Shows how far a run is: a bar that stays in its line on a terminal, a line per epoch anywhere else.

`step` is called in the training loop of one rank, so it must not slow that rank down: it counts, and draws at most
twice a second, without a thread of its own.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import SupportsFloat

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from parallel.results.records import Epoch

DRAW_EVERY_S = 0.5
"""Drawing takes about a millisecond: a fifth of a per cent of the time at this pace."""


class Progress:
    """The progress of one run of `epochs` × `steps_per_epoch` steps of `batch_size` images.

    Not `enabled` (every rank but one), it shows nothing.
    """

    def __init__(self, epochs: int, steps_per_epoch: int, label: str, *, batch_size: int, enabled: bool = True,
                 console: Console | None = None) -> None:
        self._epochs, self._steps, self._label, self._batch = epochs, steps_per_epoch, label, batch_size
        self._console = console or Console(file=sys.stdout, highlight=False)
        self._enabled = enabled
        self._live = Live(console=self._console, auto_refresh=False, transient=True) \
            if enabled and self._console.is_terminal else None
        self._started = self._drawn = self._epoch_started = time.perf_counter()
        self._done = self._epoch_base = 0
        self._loss: SupportsFloat | None = None
        self._epoch = 0

    def step(self, epoch: int, step: int, loss: SupportsFloat | None = None) -> None:
        """Step `step` of epoch `epoch` is done, both from 1.

        `loss`: a number, or a tensor of one. It is read only when the line is drawn, so that a device is not made to
        wait at every step.
        """
        if self._live is None:
            return
        now = time.perf_counter()
        if epoch != self._epoch:
            self._epoch, self._epoch_started, self._epoch_base = epoch, now, (epoch - 1) * self._steps + step
        self._done = (epoch - 1) * self._steps + step
        if loss is not None:
            self._loss = loss
        if now - self._drawn >= DRAW_EVERY_S:
            parts = [f"epoch {epoch}/{self._epochs}  step {step}/{self._steps}"]
            if self._loss is not None:
                parts.append(f"loss {float(self._loss):.3f}")
            if now > self._epoch_started:
                # An epoch's clock starts at the end of its first step that was seen.
                images = (self._done - self._epoch_base) * self._batch
                parts.append(f"{images / (now - self._epoch_started):.0f} images/s")
            self._draw(now, "  ".join(parts))

    def phase(self, name: str) -> None:
        """Show what goes on besides training steps: `validation`, `warm-up`."""
        if self._live is not None:
            self._draw(time.perf_counter(), name)

    def epoch(self, epoch: Epoch) -> None:
        """Print the line of an epoch that has ended."""
        if self._enabled:
            self._console.print(Text(epoch_line(epoch, self._epochs, self._label)), soft_wrap=True)
            # Behind a pipe the line would otherwise wait for the buffer to fill.
            self._console.file.flush()

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def _draw(self, now: float, doing: str) -> None:
        if self._live is None:
            return
        self._drawn = now
        total = self._epochs * self._steps
        parts = [doing]
        if self._done:
            parts.append(f"{clock((now - self._started) * (total - self._done) / self._done)} left")
        line = Table.grid(padding=(0, 2))
        line.add_row(Text(self._label, style="bold"), ProgressBar(total=total, completed=self._done, width=24),
                     Text("  ".join(parts)))
        self._live.update(line, refresh=True)


def epoch_line(epoch: Epoch, epochs: int, label: str) -> str:
    """An epoch in one line; what was not measured is left out."""
    parts = [f"{label}  epoch {epoch.epoch}/{epochs}", f"{epoch.seconds:.2f} s"]
    for value, form in (
        (epoch.images_per_second, "{:.1f} images/s"), (epoch.train_loss, "loss {:.4f}"),
        (epoch.val_loss, "validation {:.4f}"),
    ):
        if value is not None:
            parts.append(form.format(value))
    if epoch.val_top1 is not None:
        parts.append(f"top-1 {100 * epoch.val_top1:.1f} %")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
