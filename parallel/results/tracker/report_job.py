"""The report job of a sweep: one W&B run with the comparison table, its plots and the report, and
the speedups of the sweep's runs.

A run that ends before its baseline has no speedup yet. So the report job also sends the summaries of
runs that have changed since.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parallel.config import TrackerConfig
from parallel.results.comparison import Comparison, compare, describe
from parallel.results.comparison_export import as_csv, as_json, comparison_values
from parallel.results.formatting import count
from parallel.results.record_files import find_records
from parallel.results.records import Record
from parallel.results.report.charts import box_plot, speedup_bars
from parallel.results.report.html import alone
from parallel.results.report.page import best_of, page
from parallel.results.run_summary import summary_among
from parallel.results.tracker.connection import (
    KnownRun,
    begin,
    in_agent,
    is_off,
    offline_parts,
    read_known,
    upload_command,
)
from parallel.results.tracker.names import MOST_NAME, MOST_TAG
from parallel.results.tracker.tracker import log_files, send_summary, values_of

JOB_TYPE = "report"


def send_report(folders: Sequence[Path]) -> str:
    """Send the comparison of all records in `folders`, and return a sentence that says where it is.

    The job replaces the one that was sent for the same sweep before. Project and mode are those of
    the first record. Raises `ValueError` if there are no records, or if it runs within an agent.
    """
    if in_agent():
        raise ValueError("WANDB_SWEEP_ID is set: an agent's run cannot be a report, send it afterwards")
    records, errors = find_records(folders)
    comparisons = compare(records)
    config = _config_of(records[0])
    if is_off(config):
        return "W&B: WANDB_MODE=disabled, so no report is sent"
    updated = [record for record in records if _update(config, record, records, errors)]
    folder = folders[0] if folders[0].is_dir() else folders[0].parent
    sweeps = list(dict.fromkeys(record.sweep or record.name for record in records))
    known = _report_run(config, sweeps)
    for part in offline_parts(folder, known.id):  # replaced by what follows
        shutil.rmtree(part)
    run = begin(config, known, folder, goes_on=True, measures=False)
    try:
        _log(run, comparisons, folder, errors)
        _summarise(run, comparisons, records)
        offline = run.offline
        url = None if offline else run.url
    finally:
        run.finish()
    changed = f", speedups of {count(len(updated), 'run')} sent again" if updated else ""
    if not offline:
        return f"W&B report{changed}: {url}"
    runs = [Path(record.directory) for record in records if record.directory]
    if all(run_dir.parent == folder.resolve() for run_dir in runs):
        upload = f"{upload_command(folder)} {shlex.quote(str(folder))}/*/wandb"
    else:
        upload = upload_command(*(run_dir for run_dir in runs if (run_dir / "wandb").is_dir()), folder)
    return f"W&B report kept offline{changed}; upload the runs and it with: {upload}"


def _config_of(record: Record) -> TrackerConfig:
    stated = record.config.get("tracker", {})
    known = {field.name for field in dataclasses.fields(TrackerConfig)}
    config = TrackerConfig(**{name: value for name, value in stated.items() if name in known})
    return dataclasses.replace(config, name="wandb")


def _report_run(config: TrackerConfig, sweeps: Sequence[str]) -> KnownRun:
    """Return the run of the report, whose id is the same for the same sweeps."""
    digest = hashlib.sha256("\n".join([config.project, *sorted(sweeps)]).encode()).hexdigest()[:8]
    return KnownRun(
        id=f"report-{digest}",
        project=config.project,
        name=f"report · {', '.join(sweeps)}"[:MOST_NAME],
        group=sweeps[0][:MOST_NAME],
        job_type=JOB_TYPE,
        tags=(JOB_TYPE, *(sweep[:MOST_TAG] for sweep in sweeps[:1])),
    )


def _update(config: TrackerConfig, record: Record, records: Sequence[Record], errors: Sequence[str]) -> bool:
    """Send the summary of a run again if it has changed; return whether it has."""
    folder = None if record.directory is None else Path(record.directory)
    known = None if folder is None else read_known(folder)
    if folder is None or known is None or not known.summary:
        return False
    summary = summary_among(record, [r for r in records if r.sweep == record.sweep], errors)
    if summary == known.summary:
        return False
    run = begin(config, known, folder, goes_on=True, measures=False)
    try:
        send_summary(run, values_of(record.epochs[-1]) | summary)
    finally:
        run.finish()
    dataclasses.replace(known, summary=summary).write(folder)
    return True


def _log(run: Any, comparisons: Sequence[Comparison], folder: Path, errors: Sequence[str]) -> None:
    import wandb

    files = {
        "report.html": page(comparisons, left_out=errors),
        "comparison.csv": as_csv(comparison_values(comparisons)),
        "comparison.json": as_json(comparison_values(comparisons)),
    }
    written = {}
    for name, text in files.items():
        written[name] = folder / "wandb" / name
        written[name].write_text(text, encoding="utf-8", errors="backslashreplace")
    columns, lines = table(files["comparison.csv"])
    values: dict[str, Any] = {
        "comparison": wandb.Table(columns=[*columns], data=lines, allow_mixed_types=True),
        "report": wandb.Html(files["report.html"], inject=False),
    }
    for place, comparison in enumerate(comparisons, start=1):
        section = f"{place} " if len(comparisons) > 1 else ""
        values[f"{section}epoch times"] = wandb.Html(alone(box_plot(comparison.results)), inject=False)
        if any(result.speedup for result in comparison.results):
            values[f"{section}speedup"] = wandb.Html(alone(speedup_bars(comparison.results)), inject=False)
    run.log(values)
    log_files(run, f"report-{run.id.removeprefix('report-')}", "report", written)


def table(exported: str) -> tuple[list[str], list[list[str | float | None]]]:
    """Return the columns and lines of an exported CSV without columns that are empty; numbers as
    numbers."""
    lines = list(csv.DictReader(io.StringIO(exported)))
    columns = [name for name in lines[0] if any(line[name] for line in lines)]
    return columns, [[_value(line[name]) for name in columns] for line in lines]


def _value(cell: str) -> str | float | None:
    if cell == "":
        return None
    try:
        return float(cell)
    except ValueError:
        return cell


def _summarise(run: Any, comparisons: Sequence[Comparison], records: Sequence[Record]) -> None:
    run.summary["runs"] = len(records)
    first = comparisons[0]
    best = best_of(first.results)
    run.summary["workload"] = describe(first.workload)
    run.summary["fastest"] = best.label if best.speedup is None else f"{best.label}, {best.speedup}"
