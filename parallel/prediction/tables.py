"""Predictions as tables: one step, worker by worker; or many configurations, a row each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parallel.prediction.predict import Prediction
from parallel.results.table import percent, size

MOST_ROWS = 16
"""Workers of which each has a row; beyond that those that are alike share one."""


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds, four digits."""
    return f"{seconds * 1e3:,.4g}" if seconds < 10 else f"{seconds * 1e3:,.0f}"


def show(prediction: Prediction, console: Console) -> None:
    """Print what the step takes, and of each worker where its time goes."""
    line, config = prediction.timeline, prediction.config
    cluster, plan = line.cluster, line.program.plan
    batches = f"{plan.micro_batches} micro-batches, {plan.pipeline}, " if plan.micro_batches > 1 else ""
    lines = [
        f"{prediction.label}: plan {plan.fingerprint}, {plan.workers} worker{'s' * (plan.workers > 1)}, {batches}"
        f"global batch {prediction.batch_size}, {line.precision}",
        f"cluster {cluster.name}, {cluster.fingerprint}: {cluster.nodes} node{'s' * (cluster.nodes > 1)} of "
        f"{cluster.workers_per_node} worker{'s' * (cluster.workers_per_node > 1)}, "
        f"{size(cluster.memory_bytes)} of memory each",
        "",
        f"step {milliseconds(line.loaded_step_s)} ms, of which {milliseconds(line.data_wait_s)} ms wait for data: "
        f"{line.images_per_second:,.1f} images/s, {prediction.speedup:.2f}× single on one worker "
        f"({milliseconds(prediction.single.loaded_step_s)} ms)",
        f"epoch of {prediction.steps:,} steps on {config.data.name}: {prediction.epoch_s:,.1f} s, predicted",
    ]
    if not prediction.fits:
        lines.append(f"does not fit: a worker has {size(cluster.memory_bytes)} of memory and needs "
                     f"{size(max(line.peak_memory))}")
    _print(console, *lines, "")
    console.print(_workers(prediction))


def _workers(prediction: Prediction) -> Table:
    table = _table(["worker"], ["compute ms", "exposed ms", "idle ms", "utilisation", "memory"])
    line = prediction.timeline
    split, memory = line.split, np.array(line.peak_memory)
    columns = np.stack([split.compute_s, split.exposed_s, split.idle_s, line.utilisation, memory], axis=1)
    groups: dict[tuple[float, ...], list[int]] = {}
    for worker, row in enumerate(columns):
        key = tuple(row) if line.workers > MOST_ROWS else (worker,)
        groups.setdefault(key, []).append(worker)
    for workers in groups.values():
        compute, exposed, idle, utilisation, nbytes = columns[workers[0]]
        table.add_row(_names(workers), milliseconds(compute), milliseconds(exposed), milliseconds(idle),
                      percent(utilisation), size(nbytes))
    return table


def _names(workers: Sequence[int]) -> str:
    """Numbers of workers, runs of them shortened."""
    runs: list[list[int]] = []
    for worker in workers:
        if runs and runs[-1][1] == worker - 1:
            runs[-1][1] = worker
        else:
            runs.append([worker, worker])
    names = [str(first) if first == last else f"{first}–{last}" for first, last in runs]
    return ", ".join(names[:4]) + (f" … ({len(workers)})" if len(names) > 4 else "")


def comparison(swept: Sequence[str], rows: Sequence[tuple[Sequence[str], str, Prediction | str]]) -> Table:
    """A row for each combination: the values of what is varied, the workers as given, and the prediction or why there
    is none."""
    table = _table(swept, ["workers", "batch", "step ms", "images/s", "speedup", "efficiency", "compute", "exposed",
                           "idle", "data", "memory"])
    table.add_column("", overflow="fold")
    for values, workers, prediction in rows:
        if isinstance(prediction, str):
            table.add_row(*map(Text, values), workers, *[""] * 10, Text(prediction))
            continue
        line = prediction.timeline
        step, split = line.loaded_step_s, line.split
        shares = [percent(float(part.mean()) / step) for part in (split.compute_s, split.exposed_s, split.idle_s)]
        note = "" if prediction.fits else f"needs more than {size(line.cluster.memory_bytes)}"
        table.add_row(*map(Text, values), str(line.workers), f"{prediction.batch_size:,}", milliseconds(step),
                      f"{line.images_per_second:,.1f}", f"{prediction.speedup:.2f}×",
                      percent(prediction.efficiency, 0), *shares, percent(line.data_wait_s / step),
                      size(max(line.peak_memory)), note)
    return table


def _print(console: Console, *lines: str) -> None:
    for text in lines:
        console.print(Text(text), soft_wrap=True)


def _table(words: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(box=None, show_edge=False, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for name in words:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table
