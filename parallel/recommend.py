"""Recommend a cluster, a number of workers and a strategy.

    python -m parallel.recommend [key=value …] [--all] [--weak] [--html FILE] [override …]

    python -m parallel.recommend experiment=imagenet clusters=dgx1,h100 workers=1,2,4,8 epoch_s=600
    python -m parallel.recommend data=tiny_imagenet clusters=dgx1,mine.yaml --html scaling.html

Predicts an epoch for every combination and prints the best strategy for each cluster and number of
workers, the combinations that are not possible with the reason, and a recommendation for each
cluster: with `epoch_s` the fewest workers that reach it; without, the fastest option and the
cheapest in workers · seconds. Overrides describe the workload (model, data, trainer …) as for
parallel.train. Keys:

    clusters=a,b,c        names of files in conf/cluster/, or cluster files (.yaml).
                          Default: all of conf/cluster/
    workers=1,2,4         default 1,2,4,8; a cluster that specifies a link between nodes grows by nodes
    strategies=a,b        single, data_parallel, "one_weird_trick a", … searched; a first word
                          selects all variants. Default: all
    batch_sizes=128,256   instead of trainer.batch_size; note that the batch size affects training
    epoch_s=600           target seconds of an epoch without validation

    --all        print every combination, not only the best strategy of each
    --weak       batch sizes are those of each worker
    --html FILE  write scaling curves and all combinations as a page

Starts no process and opens no data set. Exit code 2 if nothing is possible, or for invalid
arguments.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from parallel.cli.clusters import configs_by_cluster, shipped_clusters
from parallel.cli.command import Command, Given, progress
from parallel.cli.tables import add_row, plain_table, print_lines
from parallel.cli.values import positive_seconds, whole_numbers, words
from parallel.config import require
from parallel.config.checks import MOST_SAMPLES, MOST_WORKERS
from parallel.prediction.recommendation.choose import choose
from parallel.prediction.recommendation.listing import COLUMNS, WORDS, cells, marked_rows, reasons, sentences
from parallel.prediction.recommendation.options import STRATEGIES, Question, options, select_strategies
from parallel.prediction.recommendation.page import page

COMMAND = Command(
    __doc__,
    flags=("--all", "--weak"),
    files=("--html",),
    keys=("clusters", "workers", "strategies", "batch_sizes", "epoch_s"),
    width=180,
)
RENAMED = {"cluster": "clusters", "strategy": "strategies", "trainer.batch_per_worker": "batch_sizes"}
"""Keys of parallel.train, and the keys that replace them here."""


def question(given: Given) -> Question:
    """Return the options to consider. Raises `ValueError` for an invalid value."""
    for override in given.rest:
        key, _, value = override.partition("=")
        require(
            key not in RENAMED,
            key,
            value,
            f"is chosen here: give {RENAMED.get(key)}=… the ones to choose from",
        )
    keys = given.keys
    workers = whole_numbers("workers", keys.get("workers", "1,2,4,8"), MOST_WORKERS)
    chosen = words("strategies", keys["strategies"]) if "strategies" in keys else list(STRATEGIES)
    strategies = select_strategies(chosen)
    given_sizes = keys.get("batch_sizes")
    batch_sizes = [] if given_sizes is None else whole_numbers("batch_sizes", given_sizes, MOST_SAMPLES)
    clusters = words("clusters", keys["clusters"]) if "clusters" in keys else shipped_clusters()
    configs = configs_by_cluster(clusters, ["strategy=searched", *given.rest])
    batch_sizes = batch_sizes or [next(iter(configs.values())).trainer.batch_size]
    return Question(configs, workers, batch_sizes, strategies, "--weak" in given.flags)


def describe(asked: Question) -> str:
    """Return the workload in one line."""
    config = next(iter(asked.configs.values()))
    batch = f"batch {', '.join(map(str, asked.batch_sizes))}{' a worker' if asked.weak else ''}"
    return (
        f"{config.model.label}, {config.model.image_size} px, {config.data.name}, {batch}, "
        f"{config.trainer.precision}"
    )


def recommend(given: Given, console: Console) -> int:
    """Print all options and the recommendations; exit code 2 if nothing is possible."""
    target_s = positive_seconds("epoch_s", given.keys["epoch_s"]) if "epoch_s" in given.keys else None
    everything, asked = "--all" in given.flags, question(given)
    with progress("predicting") as show:
        found = list(options(asked, show))
    choices = choose(found, target_s)
    table = plain_table(COLUMNS, words=WORDS)
    for option, mark in marked_rows(found, choices, everything):
        add_row(table, cells(option, mark), "bold" if mark else None)
    print_lines(console, describe(asked), "")
    console.print(table)
    print_lines(
        console,
        *(() if everything else (f"not possible: {reason}" for reason in reasons(found))),
        "",
        *sentences(found, choices, target_s),
    )
    for path in given.files.values():
        path.write_text(page(found, choices, target_s, describe(asked)), encoding="utf-8")
        print_lines(console, f"written: {path}")
    return 0 if choices else 2


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code."""
    return COMMAND.run(recommend, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
