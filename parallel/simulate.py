"""Predict a training step without running it.

    python -m parallel.simulate [-m] [--weak] [--svg FILE] [--trace FILE] [override …]

    python -m parallel.simulate strategy=one_weird_trick cluster=dgx1 workers=4 --svg step.svg
    python -m parallel.simulate -m workers=1,2,4,8 strategy=data_parallel,one_weird_trick cluster=dgx1

Prints the step time on the cluster and, for each worker, where its time goes and the memory it
needs. Overrides are those of parallel.train. docs/simulator.md describes the model.

    --svg FILE    draw the timeline
    --trace FILE  write the timeline for https://ui.perfetto.dev or chrome://tracing
    -m            print a row for each combination of values given as a,b,c; speedups are over one
                  worker with the same batch
    --weak        trainer.batch_size is the batch of each worker, so the global batch grows with
                  the workers

Starts no process and opens no data set. Exit code 2 for an invalid configuration.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from parallel.cli.combinations import combinations
from parallel.cli.command import Command, Given
from parallel.cli.compose import compose_config
from parallel.cli.tables import plain_table, print_lines
from parallel.config import require
from parallel.prediction.predict import Predictor
from parallel.prediction.sweep import predict_all
from parallel.prediction.tables import summary_lines, sweep_table, worker_table
from parallel.simulator.drawing import draw
from parallel.simulator.trace import bars_of, counts_of, write_trace

COMMAND = Command(__doc__, flags=("-m", "--multirun", "--weak"), files=("--svg", "--trace"), width=160)


def simulate(given: Given, console: Console) -> int:
    """Print the prediction of one configuration, draw it and write its trace if asked to."""
    weak = "--weak" in given.flags
    if given.flags & {"-m", "--multirun"}:
        return sweep(given, weak, console)
    prediction = Predictor().predict(compose_config(given.rest), weak)
    columns, rows = worker_table(prediction)
    print_lines(console, *summary_lines(prediction), "")
    console.print(plain_table(columns, words=("worker",), rows=rows))
    timeline = prediction.timeline
    title = f"{prediction.label} on {timeline.cluster.name}, {timeline.workers} workers"
    if "--svg" in given.files:
        given.files["--svg"].write_text(draw(timeline, title), encoding="utf-8")
    if "--trace" in given.files:
        write_trace(given.files["--trace"], bars_of(timeline), counts_of(timeline), title)
    return 0


def sweep(given: Given, weak: bool, console: Console) -> int:
    """Print a row for each combination; exit code 2 if none has a prediction."""
    for name, path in given.files.items():
        require(False, name, path, "needs one configuration, not a sweep")
    varied, found = combinations(given.rest)
    predicted = predict_all(found, weak)
    columns, rows = sweep_table(varied, predicted)
    console.print(
        plain_table(columns, words=[*(name for name in varied if name != "workers"), ""], rows=rows)
    )
    return 0 if any(combination.prediction for combination in predicted) else 2


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code."""
    return COMMAND.run(simulate, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
