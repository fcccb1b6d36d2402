"""Compare finished runs.

    python -m parallel.compare DIR… [--json FILE] [--csv FILE] [--report FILE] [--no-report]

Reads every record at or below the folders, prints one table per workload with a line per strategy,
the baseline first and others in the order in which they ran, and writes report.html into the first
folder. Shows files validation*.json (parallel.validate) below the folders, too. docs/records.md
explains the columns.

    --json FILE    write the numbers as JSON; - writes to standard output
    --csv FILE     write one line per strategy as CSV; - writes to standard output
    --report FILE  write the report to FILE
    --no-report    write no report

A record that cannot be read is left out, with a warning and a note in the report. Exit code 2 for
folders without records, if no record can be read, and for a run directory that is given itself and
whose record cannot be read.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from parallel.cli.command import Command, Given, open_console
from parallel.cli.result_tables import WIDE, print_comparison, print_validation
from parallel.cli.tables import print_lines
from parallel.config import require
from parallel.results.comparison import compare
from parallel.results.comparison_export import as_csv, as_json
from parallel.results.record_files import find_records, no_runs, unfinished_runs
from parallel.results.records import Record
from parallel.results.report import write_report
from parallel.results.report.validation import section
from parallel.results.validation import find_validations

COMMAND = Command(__doc__, flags=("--no-report",), files=("--json", "--csv", "--report"), width=WIDE)
STDOUT = Path("-")


def print_and_export(given: Given, console: Console) -> int:
    """Print the comparisons and validations, and write the requested files."""
    folders = [Path(argument) for argument in given.rest]
    require(
        len(folders) > 0,
        "folders",
        len(folders),
        "must be at least 1: give run directories or folders that contain them",
    )
    exporters = {"--json": as_json, "--csv": as_csv}
    exports = {flag: exporters[flag] for flag in exporters if flag in given.files}
    if STDOUT in given.files.values():
        require(
            [given.files[flag] for flag in exports].count(STDOUT) == 1,
            "--csv",
            "-",
            "takes standard output, as does --json: give one of them a file",
        )
        console = open_console(WIDE, stderr=True)  # the export is alone on standard output
    validations, left_out = find_validations(folders)
    _warn(left_out)
    records = list[Record]()
    if not validations or not no_runs(folders):
        records, errors = find_records(folders)
        _warn(errors)
        left_out = [*errors, *left_out]
    comparisons = compare(records)
    for comparison in comparisons:
        print_comparison(comparison, console)
    for validation in validations:
        print_validation(validation, console)
        console.print()
    print_lines(console, *(f"· left out, not finished: {run}" for run in unfinished_runs(folders)))
    for flag, export in exports.items():
        if given.files[flag] == STDOUT:
            sys.stdout.write(export(comparisons))
        else:
            given.files[flag].write_text(export(comparisons), encoding="utf-8")
            print_lines(console, f"written: {given.files[flag]}")
    if "--no-report" not in given.flags:
        first = folders[0] if folders[0].is_dir() else folders[0].parent
        report = given.files.get("--report", first / "report.html")
        write_report(report, comparisons, [section(validation) for validation in validations], left_out)
        print_lines(console, f"report: {report}")
    return 0


def _warn(errors: Sequence[str]) -> None:
    for error in errors:
        warnings.warn(f"left out: {error}", stacklevel=2)


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code."""
    return COMMAND.run(print_and_export, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
