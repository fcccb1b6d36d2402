"""Predictions as text: one step worker by worker, or a row for each combination of a sweep.

The functions return column names and rows of cells; the commands print them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from parallel.cluster import Cluster
from parallel.prediction.predict import Prediction
from parallel.prediction.sweep import Combination
from parallel.results.formatting import count, percent, size

MOST_ROWS = 16
"""Up to this many workers, each has its own row; beyond, those with equal values share one."""
WORKERS = "workers"


def milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds with four digits."""
    return f"{seconds * 1e3:,.4g}" if seconds < 10 else f"{seconds * 1e3:,.0f}"


def nodes_text(cluster: Cluster) -> str:
    """Return the nodes with their workers, and the workers' speeds if they differ."""
    own = cluster.node_workers or (cluster.workers_per_node,)
    workers = count(own[0], "worker") if len(own) == 1 else f"{', '.join(map(str, own))} workers"
    return f"{count(cluster.nodes, 'node')} of {workers}" + (
        f" with speeds {', '.join(f'{speed:.0%}' for speed in cluster.speeds)}" if cluster.speeds else ""
    )


def summary_lines(prediction: Prediction) -> list[str]:
    """Return lines that name the plan and the cluster, the step time, and the epoch time."""
    timeline, config = prediction.timeline, prediction.config
    cluster, plan = timeline.cluster, timeline.program.plan
    batches = f"{plan.micro_batches} micro-batches, {plan.pipeline}, " if plan.micro_batches > 1 else ""
    what = (
        f"plan {plan.fingerprint}"
        if config.strategy.makes_plan
        else "no plan, the whole model on every worker"
    )
    lines = [
        f"{prediction.label}: {what}, {count(plan.workers, 'worker')}, "
        f"{batches}global batch {prediction.batch_size}, {timeline.precision}",
        f"cluster {cluster.name}, {cluster.fingerprint}: {nodes_text(cluster)}, "
        f"{size(cluster.memory_bytes)} of memory each",
        "",
        f"step {milliseconds(timeline.loaded_step_s)} ms, of which {milliseconds(timeline.data_wait_s)} ms "
        f"wait for data: {timeline.images_per_second:,.1f} images/s, {prediction.speedup:.2f}× single on "
        f"one worker ({milliseconds(prediction.single.loaded_step_s)} ms)",
        f"epoch of {prediction.steps:,} steps on {config.data.name}: {prediction.epoch_s:,.1f} s, predicted",
    ]
    if not prediction.fits:
        lines.append(
            f"does not fit: a worker has {size(cluster.memory_bytes)} of memory and needs "
            f"{size(max(timeline.peak_memory))}"
        )
    return lines


def worker_table(prediction: Prediction) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows that say where the step of each worker goes, and its memory."""
    timeline = prediction.timeline
    split, memory = timeline.split, np.array(timeline.peak_memory)
    values = np.stack([split.compute_s, split.exposed_s, split.idle_s, timeline.utilisation, memory], axis=1)
    groups: dict[tuple[float, ...], list[int]] = {}
    for worker, row in enumerate(values):
        key = tuple(row) if timeline.workers > MOST_ROWS else (worker,)
        groups.setdefault(key, []).append(worker)
    rows = []
    for workers in groups.values():
        compute, exposed, idle, utilisation, nbytes = values[workers[0]]
        rows.append(
            [
                ranges(workers),
                milliseconds(compute),
                milliseconds(exposed),
                milliseconds(idle),
                percent(utilisation),
                size(nbytes),
            ]
        )
    return ["worker", "compute ms", "exposed ms", "idle ms", "utilisation", "memory"], rows


def ranges(workers: Sequence[int]) -> str:
    """Return worker numbers as ranges, `0–3, 8`: at most four, then the total."""
    runs: list[list[int]] = []
    for worker in workers:
        if runs and runs[-1][1] == worker - 1:
            runs[-1][1] = worker
        else:
            runs.append([worker, worker])
    names = [str(first) if first == last else f"{first}–{last}" for first, last in runs]
    return ", ".join(names[:4]) + (f" … ({len(workers)})" if len(names) > 4 else "")


def sweep_table(
    varied: Sequence[str], combinations: Sequence[Combination]
) -> tuple[list[str], list[list[str]]]:
    """Return columns and a row for each combination: its values, and the prediction or the
    reason."""
    others = [name for name in varied if name != WORKERS]
    columns = [
        *others,
        WORKERS,
        "batch",
        "step ms",
        "images/s",
        "speedup",
        "efficiency",
        "compute",
        "exposed",
        "idle",
        "data",
        "memory",
        "",
    ]
    rows = []
    for combination in combinations:
        values = [combination.values[name] for name in others]
        found = combination.prediction
        if found is None:
            missing = [""] * (len(columns) - len(others) - 2)
            rows.append([*values, combination.values.get(WORKERS, ""), *missing, combination.reason])
            continue
        timeline, shares = found.timeline, found.shares
        rows.append(
            [
                *values,
                str(timeline.workers),
                f"{found.batch_size:,}",
                milliseconds(timeline.loaded_step_s),
                f"{timeline.images_per_second:,.1f}",
                f"{found.speedup:.2f}×",
                percent(found.efficiency, 0),
                *map(percent, (shares.compute, shares.exposed, shares.idle, shares.data)),
                size(max(timeline.peak_memory)),
                "" if found.fits else f"needs more than {size(timeline.cluster.memory_bytes)}",
            ]
        )
    return columns, rows
