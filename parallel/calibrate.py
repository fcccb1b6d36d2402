"""Calibrate this machine.

    python -m parallel.torchrun --nproc-per-node N -m parallel.calibrate [override …]

    python -m parallel.torchrun --nproc-per-node 2 -m parallel.calibrate data=digits workers=2

Measures, with all workers running, the parts of a training step: every op in every shape that a
plan could give it, additions and updates, messages by size, how messages slow computing down, the
overhead of a step, and loading. Writes them to a cluster file. Overrides are those of
parallel.train (model, image size, precision, batch, threads); `cluster.file=PATH` chooses another
file than one in cluster.cache. Further keys:

    calibrate.budget_s=180   approximate seconds to measure; shapes that do not fit in are predicted
                             by a regression, whose cross-validated error is printed
    calibrate.fresh=true     discard an earlier calibration; otherwise only what it lacks is measured

Exit code 2 for an invalid configuration.
"""

from __future__ import annotations

import sys

from parallel.calibration.calibrate import calibrate
from parallel.calibration.options import CalibrationOptions
from parallel.calibration.summary import ACCURACY_COLUMNS, accuracy_rows, cluster_lines
from parallel.cli.command import HELP, open_console
from parallel.cli.ranked import config_of_world, run_ranked
from parallel.cli.ranks import Ranks
from parallel.cli.tables import plain_table, print_lines
from parallel.cli.values import prefixed_options
from parallel.cluster import Measured
from parallel.cluster.regression import cross_validate

WIDTH = 100
"""Columns of the console where it is not a terminal."""


def run(ranks: Ranks) -> None:
    """Calibrate; worker 0 prints the results."""
    options, overrides = prefixed_options(CalibrationOptions, "calibrate", sys.argv[1:])
    config = config_of_world(ranks, overrides, "parallel.calibrate")
    console = open_console(WIDTH)
    path, cluster = calibrate(config, options, ranks.rank, console)
    if ranks.rank > 0:
        return
    print_lines(console, *cluster_lines(cluster))
    if isinstance(cluster.compute, Measured):
        accuracy = cross_validate(cluster.compute.table.ops[config.trainer.precision])
        console.print("predicted times of shapes held out, relative errors:")
        console.print(plain_table(ACCURACY_COLUMNS, words=("op",), rows=accuracy_rows(accuracy)))
    print_lines(console, f"cluster: {path}")


if __name__ == "__main__":
    if set(HELP) & set(sys.argv[1:]):
        print(__doc__, end="")
    else:
        run_ranked(run)
