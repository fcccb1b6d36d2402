"""Compare finished runs.

    python -m parallel.compare DIR… [--sort COLUMN,…] [--json FILE] [--csv FILE] [--latex FILE]
        [--markdown FILE] [--report FILE] [--no-report] [--weak] [--wandb] [--watch[=SECONDS]]
        [borders=CLUSTER]

Reads every record at or below the folders, prints one table per workload with a line per strategy,
the baseline first and others in the order in which they ran, and writes report.html into the first
folder. If published records of a data set are among them (scripts/import_epoch_times.py), every epoch
is printed beside the published ones. Shows files validation*.json (parallel.validate) below the
folders, too. docs/records.md explains the columns.

    --sort COLUMN,…  order the rows by columns of the table, with - before one from large to small:
                     --sort workers,-speedup
    --json FILE      write the numbers as JSON; - writes to standard output
    --csv FILE       write one line per strategy as CSV; - writes to standard output
    --latex FILE     write a table per workload for LaTeX with the package booktabs; - writes to standard output
    --markdown FILE  write tables and notes as Markdown; - writes to standard output
    --report FILE    write the report to FILE
    --no-report      write no report
    --weak           print and export weak scaling instead: runs with equal batches per worker, whose baseline is
                     one worker with its own batch; and beside it the table of Krizhevsky 2014
    --wandb          send the table, its plots and the report to W&B, and speedups that runs lack there
    --watch[=SECONDS]
                     print the tables and write the report again every 5 (or SECONDS) seconds, until no
                     run below the folders is at work and none has written for a minute; the page reloads
                     itself meanwhile. What needs more runs than have finished is named in a line until then
    borders=CLUSTER  predict for runs with several batches or link rates where which strategy wins, with
                     a cluster of conf/cluster/ or a cluster file (docs/crossover.md)

A record that cannot be read is left out, with a warning and a note in the report. Exit code 2 for
folders without records, if no record can be read, and for a run directory that is given itself and
whose record cannot be read.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from parallel.cli.command import Command, Given, open_console, progress
from parallel.cli.result_tables import (
    WIDE,
    print_appendix,
    print_comparison,
    print_crossover,
    print_scaling,
    print_validation,
)
from parallel.cli.tables import print_lines
from parallel.cli.watch import interval_s, watch
from parallel.config import require
from parallel.results.appendix import appendices
from parallel.results.comparison import Comparison, TooFewRuns, compare
from parallel.results.comparison_export import as_csv, as_json, comparison_values, scaling_values
from parallel.results.comparison_text import as_latex, as_markdown, comparison_tables, scaling_tables
from parallel.results.crossover import Crossover, PredictedMap, crossovers
from parallel.results.order import check_columns, other_columns, sorted_by
from parallel.results.record_files import find_records, no_runs
from parallel.results.records import Record
from parallel.results.report import Live, write_report
from parallel.results.report.appendix import appendix_sections
from parallel.results.report.crossover import crossover_sections
from parallel.results.report.scaling import scaling_sections
from parallel.results.report.validation import section as validation_section
from parallel.results.running import Running, running_runs
from parallel.results.scaling import Scaling, weak_scaling
from parallel.results.settings import known_headings
from parallel.results.validation import Validation, find_validations

EXPORTERS = ("--json", "--csv", "--latex", "--markdown")
COMMAND = Command(
    __doc__,
    flags=("--no-report", "--weak", "--wandb"),
    files=(*EXPORTERS, "--report"),
    texts=("--sort",),
    optional=("--watch",),
    keys=("borders",),
    width=WIDE,
)
STDOUT = Path("-")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Findings:
    """What lies below the folders, and what follows from it."""

    comparisons: Sequence[Comparison]
    scalings: Sequence[Scaling] | None
    """None: comparisons are printed and exported, and not weak scaling."""
    maps: Sequence[tuple[Crossover, PredictedMap | None]]
    validations: Sequence[Validation]
    running: Sequence[Running]
    left_out: Sequence[str]
    """Errors of files that cannot be read."""
    awaited: Sequence[str]
    """What is asked for and has too few runs yet."""


def print_once_or_watch(given: Given, console: Console) -> int:
    """Print and export once, or again and again while runs are at work."""
    folders = [Path(argument) for argument in given.rest]
    require(
        len(folders) > 0,
        "folders",
        len(folders),
        "must be at least 1: give run directories or folders that contain them",
    )
    require(
        "--sort" not in given.texts or "--weak" not in given.flags,
        "--sort",
        given.texts.get("--sort"),
        "orders the rows of the comparison: leave it out with --weak, whose rows are by strategy and workers",
    )
    console = _console(given, console)
    if "--sort" in given.texts:
        _check_columns(given.texts["--sort"])
    if "--watch" not in given.values:
        print_and_export(given, folders, console)
        return 0
    every_s = interval_s(given.values["--watch"])
    require(STDOUT not in given.files.values(), "--watch", "-", "takes standard output: give a file")
    exist = all(folder.is_dir() for folder in folders)
    require(exist, "--watch", " ".join(given.rest), "needs folders that exist")

    def renew(last: bool) -> None:
        if console.is_terminal:
            console.clear()
        print_and_export(given, folders, console, None if last else every_s)

    watch(renew, folders, every_s)
    return 0


def print_and_export(
    given: Given, folders: Sequence[Path], console: Console, every_s: float | None = None
) -> None:
    """Print the comparisons and validations, and write the requested files. With `every_s` this is done
    again after as many seconds, and there need not be a record yet."""
    found = _find(given, folders, waiting=every_s is not None)
    _print(found, console)
    for flag in EXPORTERS:
        if flag not in given.files:
            continue
        if given.files[flag] == STDOUT:
            sys.stdout.write(_export(flag, found))
        else:
            given.files[flag].write_text(_export(flag, found), encoding="utf-8")
            print_lines(console, f"written: {given.files[flag]}")
    if "--no-report" not in given.flags:
        first = folders[0] if folders[0].is_dir() else folders[0].parent
        report = given.files.get("--report", first / "report.html")
        sections = [
            *scaling_sections(found.comparisons),
            *crossover_sections(found.maps),
            *appendix_sections(found.comparisons),
            *map(validation_section, found.validations),
        ]
        live = None if every_s is None else Live(datetime.now().strftime("%H:%M:%S"), every_s)
        write_report(report, found.comparisons, sections, found.left_out, found.running, live)
        print_lines(console, f"report: {report}")
    if "--wandb" in given.flags and every_s is None:
        from parallel.results.tracker.report_job import send_report

        print_lines(console, send_report(folders))


def _check_columns(columns: str) -> None:
    """Raise `ValueError` for columns that no table can have."""
    if other_columns(columns):
        from parallel.cli.schema import option_names  # imports torch, which takes seconds

        check_columns(columns, known_headings(option_names()))


def _export(flag: str, found: Findings) -> str:
    """Return the tables that are printed in the format of `flag`."""
    comparisons, scalings = found.comparisons, found.scalings
    if flag in ("--json", "--csv"):
        values = comparison_values(comparisons) if scalings is None else scaling_values(scalings)
        return as_json(values) if flag == "--json" else as_csv(values)
    tables = comparison_tables(comparisons) if scalings is None else scaling_tables(scalings)
    return as_latex(tables) if flag == "--latex" else as_markdown(tables)


def _console(given: Given, console: Console) -> Console:
    """Return the console for the tables: on standard error if an export goes to standard output."""
    if STDOUT not in given.files.values():
        return console
    to_stdout = [flag for flag in EXPORTERS if given.files.get(flag) == STDOUT]
    require(len(to_stdout) > 0, "--report", "-", "must be a file")
    require(
        len(to_stdout) == 1,
        to_stdout[-1],
        "-",
        f"takes standard output, as does {to_stdout[0]}: give one of them a file",
    )
    return open_console(WIDE, stderr=True)


def _find(given: Given, folders: Sequence[Path], waiting: bool) -> Findings:
    """Read all files below the folders; if `waiting`, there need be none yet."""
    validations, left_out = find_validations(folders)
    records = list[Record]()
    none = no_runs(folders)
    if not none or not (waiting or validations):
        records, errors = find_records(folders)
        left_out = [*errors, *left_out]
    running, errors = running_runs(folders)
    for error in (left_out := [*left_out, *errors]):
        warnings.warn(f"left out: {error}", stacklevel=2)
    awaited: list[str] = []

    def found(search: Callable[[], list[Found]]) -> list[Found]:
        try:
            return search()
        except TooFewRuns as error:
            if not waiting:
                raise
            awaited.append(str(error))
            return []

    comparisons = found(lambda: compare(records))
    if "--sort" in given.texts:
        comparisons = sorted_by(comparisons, given.texts["--sort"])
    return Findings(
        comparisons,
        found(lambda: _weak(comparisons)) if "--weak" in given.flags else None,
        found(lambda: _maps(comparisons, given.keys.get("borders"))),
        validations,
        running,
        left_out,
        awaited,
    )


def _print(found: Findings, console: Console) -> None:
    if found.scalings is None:
        for comparison in found.comparisons:
            print_comparison(comparison, console)
        for appendix in appendices(found.comparisons):
            print_appendix(appendix, console)
    for scaling in found.scalings or ():
        print_scaling(scaling, console)
    for crossover, predicted in found.maps:
        print_crossover(crossover, predicted, console)
    for validation in found.validations:
        print_validation(validation, console)
        console.print()
    for run in found.running:
        print_lines(console, f"· {'running' if run.at_work else 'left out, not finished'}: {run}")
    for sentence in found.awaited:
        print_lines(console, f"· too few runs yet: {sentence}")


def _maps(
    comparisons: Sequence[Comparison], borders: str | None
) -> list[tuple[Crossover, PredictedMap | None]]:
    """Return who wins where, with the borders predicted on a cluster if one is given."""
    found = crossovers(comparisons)
    if borders is None:
        return [(crossover, None) for crossover in found]
    if not found:
        raise TooFewRuns(
            f"borders={borders} needs runs of several strategies with several batches or link rates"
        )
    from parallel.cli.crossover import predict_crossover  # imports torch, which takes seconds

    with progress("predicting"):
        return [(crossover, predict_crossover(crossover, borders)) for crossover in found]


def _weak(comparisons: Sequence[Comparison]) -> list[Scaling]:
    found = weak_scaling(comparisons)
    if not found:
        batches = sorted({str(comparison.workload.batch_size) for comparison in comparisons})
        present = (
            f"there are none: global batches are {', '.join(batches)}" if batches else "none has finished"
        )
        raise TooFewRuns(
            f"--weak compares runs with equal batches per worker on several numbers of workers, and {present}. "
            "Run them with trainer.batch_per_worker=…"
        )
    return found


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code."""
    return COMMAND.run(print_once_or_watch, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
