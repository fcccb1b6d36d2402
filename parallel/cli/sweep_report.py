"""The end of a sweep: its W&B report, and its failure if a job failed."""

from __future__ import annotations

from collections.abc import Collection

from parallel.cli.sweep import Outcome, SweepFailed
from parallel.config import one_line
from parallel.config.stderr import print_to_stderr


def conclude(outcomes: Collection[Outcome]) -> None:
    """Send the report of a sweep that has ended; raise `SweepFailed` if a job failed."""
    report_sweep(outcomes)
    failed = [outcome.job.label for outcome in outcomes if outcome.status == "failed"]
    if failed:
        raise SweepFailed(f"{len(failed)} of {len(outcomes)} jobs failed: {', '.join(failed)}")


def report_sweep(outcomes: Collection[Outcome]) -> None:
    """Send the report if a job has finished that is known to W&B.

    A sweep does not fail because of it: a warning says why there is none.
    """
    from parallel.results.tracker.connection import FILE, in_agent

    done = [outcome.job for outcome in outcomes if outcome.status == "done"]
    if in_agent() or not any((job.run_dir / FILE).exists() for job in done):
        return
    # Imported here: jobs of a sweep import this module, too, and draw no plots.
    from parallel.results.tracker.report_job import send_report

    try:
        print(send_report([done[0].sweep_dir]), flush=True)
    except ValueError as error:
        print_to_stderr(f"warning: no W&B report: {one_line(error)}")
