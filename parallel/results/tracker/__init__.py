"""Trackers send runs and their comparison to W&B, in addition to the records on disk. No other
package imports W&B.

    tracker.py     the tracker of a run, and the one that discards everything
    names.py       what a run is called: its name, tags and settings (no W&B)
    connection.py  credentials, online or offline, starting a run at W&B
    report_job.py  the run that shows the comparison of a sweep, and speedups in the sweep's runs

Open a tracker in rank 0 only. Without an API key the run is kept offline in `run_dir/wandb`, and
the command that uploads it is printed at the end. A missing network or account is never an error.
"""

from parallel.results.tracker.names import RunFacts
from parallel.results.tracker.tracker import Tracker, open_tracker

__all__ = ["RunFacts", "Tracker", "open_tracker"]
