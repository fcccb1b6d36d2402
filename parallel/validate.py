"""Measure how well the simulator predicts: python -m parallel.torchrun --nproc-per-node N -m
parallel.validate [override …]

    python -m parallel.torchrun --nproc-per-node 2 -m parallel.validate data=digits workers=2
    python -m parallel.compare runs/validation

Predicts and measures the steps of many plans: for each batch size all named plans, the optimum of
the search, its runners-up, and random plans. Prints both times for every plan and writes them to a
file that parallel.compare shows. Calibrate first, with the same workers, model and image size
(parallel.calibrate). Overrides are those of parallel.train (model, image size, precision, threads,
`cluster.file=PATH`). Further keys:

    validate.batch_sizes=128,96  global batch sizes; those not calibrated are held out
    validate.runners_up=5        plans per batch size that differ from the optimum in one op
    validate.random=8            random plans per batch size
    validate.blocks=5            measurements of each plan
    validate.steps=2             timed steps of each measurement
    validate.warm_up=1           untimed steps of each measurement
    validate.out=runs/validation folder of the file to write, validation-N.json

Exit code 2 for an invalid configuration. docs/predictions.md has results.
"""

from __future__ import annotations

import sys

from parallel.cli.command import HELP, open_console
from parallel.cli.ranked import config_of_world, run_ranked
from parallel.cli.ranks import Ranks
from parallel.cli.result_tables import print_validation
from parallel.cli.tables import print_lines
from parallel.cli.values import prefixed_options
from parallel.config.stderr import print_to_stderr
from parallel.validation.measure import validate
from parallel.validation.options import ValidationOptions

WIDTH = 200
"""Columns of the console where it is not a terminal."""


def run(ranks: Ranks) -> None:
    """Validate; worker 0 prints progress to standard error and the results to standard output."""
    options, overrides = prefixed_options(ValidationOptions, "validate", sys.argv[1:])
    config = config_of_world(ranks, overrides, "parallel.validate")
    written = validate(config, options, tell=print_to_stderr)
    if written is not None:
        path, validation = written
        console = open_console(WIDTH)
        print_validation(validation, console)
        print_lines(console, f"written: {path}")


if __name__ == "__main__":
    if set(HELP) & set(sys.argv[1:]):
        print(__doc__, end="")
    else:
        run_ranked(run)
