"""Comparisons as JSON and CSV: numbers unrounded, unknown values null or empty."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from typing import Any

from parallel.config import printable
from parallel.results.comparison import Comparison, Result
from parallel.results.notes import notes


def as_json(comparisons: Sequence[Comparison]) -> str:
    """Return the comparisons as a JSON list."""
    return json.dumps([_comparison(comparison) for comparison in comparisons], indent=2) + "\n"


def as_csv(comparisons: Sequence[Comparison]) -> str:
    """Return one line per result of all comparisons; the columns are the keys of the JSON,
    flattened."""
    lines = []
    for comparison in comparisons:
        for result in comparison.results:
            values = _result(result)
            line = dataclasses.asdict(comparison.workload) | {"hardware": comparison.hardware}
            line |= {k: v for k, v in values.items() if not isinstance(v, (dict, list))}
            line |= {f"epoch_s_{k}": v for k, v in values["epoch_s"].items()}
            line |= {f"time_split_{k}": v for k, v in (values["time_split"] or {}).items()}
            lines.append(line)
    columns = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    # Text of a record may control the terminal that shows the lines.
    writer.writerows(
        {name: printable(cell) if isinstance(cell, str) else cell for name, cell in line.items()}
        for line in lines
    )
    return text.getvalue()


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "workload": dataclasses.asdict(comparison.workload),
        "hardware": comparison.hardware,
        "rows": [_result(result) for result in comparison.results],
        "notes": notes(comparison),
    }


def _result(result: Result) -> dict[str, Any]:
    key, ratio = result.key, result.speedup
    return {
        "strategy": key.strategy,
        "scheme": result.scheme or None,
        "workers": key.workers,
        "threads": key.threads,
        "role": result.role or None,
        "plan": key.plan,
        "runs": len(result.records),
        "epochs": len(result.epoch_times),
        "epoch_s": dataclasses.asdict(result.epoch_s),
        "images_per_second": result.images_per_second,
        "speedup": ratio and ratio.ratio,
        "speedup_low": ratio and ratio.low,
        "speedup_high": ratio and ratio.high,
        "efficiency": result.efficiency,
        "top1": result.top1,
        "top5": result.top5,
        "bytes_per_epoch": result.bytes_per_epoch,
        "peak_memory_bytes": result.peak_memory_bytes,
        "time_split": result.time_split(),
        "records": [record.directory for record in result.records],
    }
