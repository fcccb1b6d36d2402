"""Comparisons and scalings as JSON and CSV: numbers unrounded, unknown values null or empty."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from parallel.config import printable
from parallel.results.comparison import Comparison
from parallel.results.machines import clock_mhz
from parallel.results.notes import notes
from parallel.results.result import Result
from parallel.results.scaling import Point, Scaling
from parallel.results.scaling_table import scaling_notes
from parallel.results.statistics import Speedup

FORMULA = ("=", "+", "-", "@")
"""First characters of cells that spreadsheets calculate."""


def as_json(values: Sequence[Mapping[str, Any]]) -> str:
    """Return values that `comparison_values` or `scaling_values` returned as a JSON list."""
    return json.dumps(list(values), indent=2) + "\n"


def as_csv(values: Sequence[Mapping[str, Any]]) -> str:
    """Return one line per row of the values; the columns are the keys of the JSON, flattened.

    Text that a spreadsheet would take for a formula begins with an apostrophe.
    """
    lines = []
    for value in values:
        for row in value["rows"]:
            line = {**value["workload"], **_flat(value), **_flat(row)}
            # The name of a setting may be that of another column.
            line |= {f"setting_{k}" if k in line else k: v for k, v in row["settings"].items()}
            line |= {f"epoch_s_{k}": v for k, v in row["epoch_s"].items()}
            line |= {f"time_split_{k}": v for k, v in (row["time_split"] or {}).items()}
            lines.append({_cell(name): _cell(value) for name, value in line.items()})
    columns = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def comparison_values(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Return the numbers of each comparison."""
    return [
        {
            "workload": dataclasses.asdict(comparison.workload),
            "hardware": comparison.hardware,
            "rows": [_result(result) for result in comparison.results],
            "notes": notes(comparison),
        }
        for comparison in comparisons
    ]


def scaling_values(scalings: Sequence[Scaling]) -> list[dict[str, Any]]:
    """Return the numbers of each scaling: those of a comparison, with the speedups of the scaling."""
    return [
        {
            "scaling": scaling.kind,
            "batch": scaling.batch,
            "workload": dataclasses.asdict(scaling.workload),
            "hardware": scaling.hardware,
            "rows": [_point(point) for point in scaling.points],
            "notes": scaling_notes(scaling),
        }
        for scaling in scalings
    ]


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if not isinstance(value, (dict, list))}


def _point(point: Point) -> dict[str, Any]:
    return {
        **_result(point.result),
        **_speedup(point.speedup),
        "batch_size": point.batch_size,
        "efficiency": point.efficiency,
        "predicted_speedup": point.predicted_speedup,
        "predicted_efficiency": point.predicted_efficiency,
    }


def _speedup(ratio: Speedup | None) -> dict[str, Any]:
    return {
        "speedup": ratio and ratio.ratio,
        "speedup_low": ratio and ratio.low,
        "speedup_high": ratio and ratio.high,
        "speedup_interval": ratio and ratio.covers,
    }


def _cell(value: object) -> object:
    """Return a value as a cell. Text of a record may control the terminal that shows it, or be a formula
    for a spreadsheet: an apostrophe makes it text."""
    if not isinstance(value, str):
        return value
    return f"'{printable(value)}" if value.startswith(FORMULA) else printable(value)


def _result(result: Result) -> dict[str, Any]:
    key, check = result.key, result.predicted
    return {
        "strategy": key.strategy,
        "scheme": result.short_scheme or None,
        "settings": dict(result.settings),
        "workers": key.workers,
        "threads": key.threads,
        "hosts": None if key.hosts is None else key.hosts_text,
        "network": key.network,
        "role": result.role or None,
        "plan": key.plan,
        "runs": len(result.records),
        "epochs": len(result.epoch_times),
        "epoch_s": dataclasses.asdict(result.epoch_s),
        "predicted_s": check and check.predicted_s,
        "measured_over_predicted": check and check.ratio,
        "outside_prediction": check and check.outside,
        "images_per_second": result.images_per_second,
        **_speedup(result.speedup),
        "efficiency": result.efficiency,
        "top1": result.top1,
        "top5": result.top5,
        "noisy": result.noisy or None,
        "clock_mhz": clock_mhz(result.records),
        "not_trained": result.not_trained or None,
        "bytes_per_epoch": result.bytes_per_epoch,
        "peak_memory_bytes": result.peak_memory_bytes,
        "time_split": result.time_split(),
        "records": [record.directory for record in result.records],
    }
