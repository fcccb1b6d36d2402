"""Compare finished runs: `python -m parallel.compare DIR… [--json FILE] [--csv FILE] [--report FILE]`.

Reads every record below the folders and prints, for each workload, a row per strategy; writes `report.html`. Files
`validation*.json` below them (predicted against measured steps, scripts/validate_simulator.py) are shown, too.
What the columns mean stands in `docs/records.md`.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parallel.results.comparison import Comparison, Result, compare, describe
from parallel.results.notes import notes
from parallel.results.record_files import find_records, no_runs, unfinished_runs
from parallel.results.report import write_report
from parallel.results.report.validation import section
from parallel.results.table import RESULTS, TIMES, WHO, WHO_SHORT, Column, cells
from parallel.results.validation import find_validations
from parallel.results.validation_table import print_validation

WIDE = 10_000
"""Columns of the console when it is no terminal: a row stays one line, for grep and for logs."""


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the table and its notes; on a terminal too narrow for one table, times and results one below the other."""
    console.print(Text(describe(comparison.workload), style="bold"), Text(comparison.hardware, style="dim"), sep="\n")
    whole = _table(comparison.results, WHO + TIMES + RESULTS, console)
    if console.measure(whole, options=console.options.update(width=WIDE)).maximum <= console.width:
        console.print(whole)
    else:
        console.print(_table(comparison.results, WHO_SHORT + TIMES, console, narrow=True))
        results = tuple(column for column in RESULTS if column[0] != "top-5")
        console.print(_table(comparison.results, WHO_SHORT + results, console, narrow=True))
    console.print(Text("Epoch times in seconds. Speedup: ratio of medians, with a bootstrap interval.", style="dim"))
    for note in notes(comparison):
        console.print(Text(f"· {note}"), soft_wrap=True)
    console.print()


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """A comparison as JSON has it: numbers unrounded, what is not known null."""
    return {
        "workload": dataclasses.asdict(comparison.workload),
        "hardware": comparison.hardware,
        "rows": [_row_dict(row) for row in comparison.results],
        "notes": notes(comparison),
    }


def as_csv(comparisons: Sequence[Comparison]) -> str:
    """All rows of all comparisons, a line each; the columns are the keys of JSON, flat."""
    lines = []
    for comparison in comparisons:
        for row in comparison.results:
            values = _row_dict(row)
            flat = dataclasses.asdict(comparison.workload) | {"hardware": comparison.hardware}
            flat |= {k: v for k, v in values.items() if not isinstance(v, (dict, list))}
            flat |= {f"epoch_s_{k}": v for k, v in values["epoch_s"].items()}
            flat |= {f"time_split_{k}": v for k, v in (values["time_split"] or {}).items()}
            lines.append(flat)
    columns = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry point. Returns the exit code: 2 for input that cannot be used, after one line on standard error."""
    options = _parser().parse_args(arguments)
    if options.json == options.csv == "-":
        print("error: --json=- and --csv=- both want standard output; give one of them a file",
              file=sys.stderr)
        return 2
    try:
        validations = find_validations(options.dirs)
        comparisons = [] if validations and no_runs(options.dirs) else compare(find_records(options.dirs))
        # Where JSON or CSV goes to standard output it is alone there.
        console = Console(stderr="-" in (options.json, options.csv))
        if not console.is_terminal:
            console.width = WIDE
        for comparison in comparisons:
            print_comparison(comparison, console)
        for validation in validations:
            print_validation(validation, console)
            console.print()
        for run in unfinished_runs(options.dirs):
            console.print(Text(f"· left out, not finished: {run}"), soft_wrap=True)
        _write(options.json, lambda: json.dumps([as_dict(c) for c in comparisons], indent=2) + "\n", console)
        _write(options.csv, lambda: as_csv(comparisons), console)
        if not options.no_report:
            first: Path = options.dirs[0]
            report = options.report or (first if first.is_dir() else first.parent) / "report.html"
            write_report(report, comparisons, [section(validation) for validation in validations])
            console.print(Text(f"report: {report}"), soft_wrap=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _row_dict(row: Result) -> dict[str, Any]:
    key, ratio = row.key, row.speedup
    return {
        "strategy": key.strategy, "scheme": row.scheme or None, "workers": key.workers, "threads": key.threads,
        "role": row.role or None, "plan": key.plan, "runs": len(row.records), "epochs": len(row.epoch_times),
        "epoch_s": dataclasses.asdict(row.epoch_s), "images_per_second": row.images_per_second,
        "speedup": ratio and ratio.ratio, "speedup_low": ratio and ratio.low, "speedup_high": ratio and ratio.high,
        "efficiency": row.efficiency, "top1": row.top1, "top5": row.top5, "bytes_per_epoch": row.bytes_per_epoch,
        "peak_memory_bytes": row.peak_memory_bytes, "time_split": row.time_split(),
        "records": [record.directory for record in row.records],
    }


def _table(rows: Sequence[Result], columns: Sequence[Column], console: Console, narrow: bool = False) -> Table:
    """A table; `narrow`: with less room between columns, and words that may take a second line."""
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, show_edge=False, pad_edge=False,
                  padding=0 if narrow else (0, 1), collapse_padding=True)
    names, lines = cells(rows, columns)
    for name in names:
        word = name in ("strategy", "scheme")
        table.add_column(name.replace("×", "\n×") if narrow else name, justify="left" if word else "right",
                         no_wrap=not (narrow and word), style="bold" if name in ("strategy", "speedup") else "")
    for row, line in zip(rows, lines, strict=True):
        table.add_row(*line, style={"baseline": "dim", "machine": "dim italic"}.get(row.role))
    return table


def _write(target: str | None, content: Callable[[], str], console: Console) -> None:
    if target == "-":
        sys.stdout.write(content())
    elif target is not None:
        Path(target).write_text(content(), encoding="utf-8")
        console.print(Text(f"written: {target}"), soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m parallel.compare", description="Compare finished runs.")
    parser.add_argument("dirs", nargs="+", type=Path, metavar="DIR", help="run directory, or a folder of them")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON; - for standard output")
    parser.add_argument("--csv", metavar="FILE", help="write the rows as CSV; - for standard output")
    parser.add_argument("--report", type=Path, metavar="FILE", help="where the report goes (DIR/report.html)")
    parser.add_argument("--no-report", action="store_true", help="write no report")
    return parser


if __name__ == "__main__":
    sys.exit(main())
