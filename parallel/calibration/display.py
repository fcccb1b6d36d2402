"""What worker 0 shows: a bar on a terminal, a line per phase anywhere else, and the result."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from parallel.cluster import Cluster, Link
from parallel.cluster.regression import Accuracy
from parallel.cluster.units import text


class Show:
    """The progress of one calibration."""

    def __init__(self, console: Console, enabled: bool) -> None:
        self._console, self._enabled = console, enabled
        self._bar = Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=console,
                             transient=True) if enabled and console.is_terminal else None
        self._task: TaskID | None = None

    def __enter__(self) -> Show:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def phase(self, name: str) -> None:
        """Something else begins to be measured."""
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(name, total=1.0)
        elif self._enabled:
            self._console.print(name, highlight=False)
            self._console.file.flush()

    def done(self, share: float) -> None:
        """So much of the phase is over."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=min(1.0, share))

    def note(self, line: str) -> None:
        if self._enabled:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def show_cluster(cluster: Cluster, console: Console) -> None:
    """The cluster's numbers but for the ops'."""
    for name, link in (("inside", cluster.inside), ("between", cluster.between)):
        if link is not None:
            console.print(f"{name}: {describe(link)}", highlight=False)
    console.print(f"computing beside messages is slowed down by {cluster.overlap_slowdown:.0%} of their time; "
                  f"{text(cluster.step_overhead_s, 'time')} overhead of a step; "
                  f"{text(cluster.data_s_per_image, 'time')} to load an image", highlight=False)
    if cluster.core_contention:
        console.print("computing beside other workers of a node takes, while 1, 2 … compute: "
                      + ", ".join(f"{share:.0%}" for share in cluster.core_contention), highlight=False)


def describe(link: Link) -> str:
    """A link in a line."""
    times = ", ".join(f"{link.seconds(size) * 1e3:.3g} ms for {text(size, 'size')}" for size in (4e3, 1e6, 1e8))
    return f"{link.latency_s * 1e6:.0f} us, {'shared by a node' if link.shared else 'of each worker'}; {times}"


def show_accuracy(rows: list[Accuracy], console: Console) -> None:
    """The learned model's cross-validated errors."""
    table = Table(title="predicted times of shapes held out: error", title_justify="left", box=None)
    for name in ("op", "times", "median", "mean", "largest", "of the time"):
        table.add_column(name, justify="left" if name == "op" else "right")
    for row in rows:
        table.add_row(row.kind, str(row.samples), *(f"{value:.1%}" for value in
                                                    (row.median, row.mean, row.largest, row.of_time)))
    console.print(table)
