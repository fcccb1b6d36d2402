"""Compare predictions with published results: python scripts/beside_published.py

Prints speedups of one weird trick at 2, 4 and 8 GPUs on the machine of Krizhevsky 2014, and epochs
of the strategies with and without loading on the machine of Leon 2019. The published numbers and
their sources are in parallel/results/krizhevsky.py and published_epoch_times.json; docs/predictions.md
discusses the differences. No number of a cluster was fitted to a result that is predicted here. Two were taken
from the single-GPU baselines, as conf/cluster/k20.yaml and two_p100.yaml state: the speed of one GPU,
and loading.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from parallel.cli.compose import compose_config
from parallel.cluster import Cluster, open_cluster
from parallel.config import Config, StrategyConfig
from parallel.data import known_images
from parallel.graph import Graph
from parallel.graph.configured import graph_of
from parallel.prediction.predict import Prediction, predict
from parallel.results import krizhevsky
from parallel.strategies import DataParallel, ModelParallel, OneWeirdTrick, Single

ONE_WEIRD_TRICK = ("experiment=imagenet", "cluster=k20")
"""Configuration of Krizhevsky's runs."""
TIMES = Path(__file__).with_name("published_epoch_times.json")
WIDTH = 130
LEFT = ("strategy", "an epoch is")
"""Columns of words."""


def predicted(
    config: Config,
    graph: Graph,
    strategy: StrategyConfig,
    workers: int,
    weak: bool = False,
    cluster: Cluster | None = None,
) -> Prediction:
    """Return the prediction of a strategy on the configured cluster, or on `cluster`."""
    own = dataclasses.replace(config, strategy=strategy, workers=workers)
    return predict(own, graph, cluster or open_cluster(config.cluster, workers), weak)


def hours(found: Prediction, epochs: int) -> float:
    """Return the hours of a number of epochs over all images."""
    return epochs * known_images(found.config.data) / found.timeline.images_per_second / 3600


def one_weird_trick_table() -> Table:
    """Return hours and speedups of the paper's rows, and of each scheme that matches a row."""
    config = compose_config([*ONE_WEIRD_TRICK, f"trainer.batch_size={krizhevsky.BATCH_OF_ONE}"])
    graph = graph_of(config)
    table = _table(
        [
            "GPUs",
            "batch: conv, FC",
            "published h",
            "speedup",
            "scheme",
            "predicted h",
            "speedup",
            "predicted ÷ published",
            "published: a step's loss ms",
            "predicted",
        ]
    )
    single = predicted(config, graph, Single(), 1)
    alone, *rows = krizhevsky.ROWS
    images = krizhevsky.EPOCHS * known_images(config.data)
    table.add_row(*_published(alone), "", f"{hours(single, krizhevsky.EPOCHS):.2f}", "1×", "", "", "")
    alone_ms = 3.6e6 * alone.hours * alone.batch[0] / images
    for row in rows:
        for scheme in "abc" if row.whole else "bc":  # scheme a has a single pass
            strategy = OneWeirdTrick(scheme=scheme, update="step" if row.whole else "pass")
            found = predicted(config, graph, strategy, row.gpus, weak=True)
            first = scheme in ("a" if row.whole else "b")
            lost = 3.6e6 * row.hours * row.batch[0] / images - alone_ms
            table.add_row(
                *(_published(row) if first else [""] * 4),
                scheme,
                f"{hours(found, krizhevsky.EPOCHS):.2f}",
                f"{found.speedup:.2f}×",
                f"{found.speedup / row.speedup:.2f}",
                f"{lost:.0f}" if first else "",
                f"{1e3 * (found.timeline.step_s - single.timeline.step_s):.0f}",
            )
    return table


def _published(row: krizhevsky.PublishedRow) -> list[str]:
    """Return the cells of a row of the paper: GPUs, batches, hours and speedup."""
    convolutions, inner = row.batch
    speedup = "1×" if row.gpus == 1 else f"{row.speedup:.2f}×"
    return [str(row.gpus), f"{convolutions:,}, {inner:,}", f"{row.hours:.2f}", speedup]


SHORT = {"data_parallel": "data", "model_parallel": "model", "one_weird_trick": "one weird trick"}
STRATEGIES = {
    "single": Single(),
    "data_parallel": DataParallel(),
    "model_parallel": ModelParallel(scheme="layers"),
    "one_weird_trick": OneWeirdTrick(scheme="a"),
}


def mean_epochs(times: Mapping[str, Any], data: str) -> dict[str, float]:
    """Return the published mean seconds of an epoch by strategy."""
    return {
        of["strategy"]: statistics.fmean(of["epoch_times_s"])
        for of in times["experiments"]
        if of["data"] == data
    }


def epochs(times: Mapping[str, Any], data: str) -> Table:
    """Return epoch times of the strategies, published and predicted, with loading and without."""
    config = compose_config(times["sets"][data]["overrides"])
    graph = graph_of(config)
    loading = open_cluster(config.cluster, 2)
    no_loading = dataclasses.replace(loading, data_s_per_image=0.0)
    published = mean_epochs(times, data)
    rows = {
        name: (
            published[name],
            *(
                predicted(config, graph, strategy, 1 if name == "single" else 2, cluster=cluster).epoch_s
                for cluster in (loading, no_loading)
            ),
        )
        for name, strategy in STRATEGIES.items()
    }
    table = _table(["strategy", "published s", "rank", "predicted s", "rank", "without loading s", "rank"])
    ranked = [ranks([row[i] for row in rows.values()]) for i in range(3)]
    for place, (name, row) in enumerate(rows.items()):
        table.add_row(name, *(cell for i in range(3) for cell in (f"{row[i]:.1f}", ranked[i][place])))
    return table


def readings(times: Mapping[str, Any], data: str) -> Table:
    """Return by how many milliseconds a step is longer than on one GPU, published and predicted, for
    each reading of "an epoch".

    Loading is the same for all strategies, so how much longer a step is than on one GPU should be
    computing and communication, which are predicted without loading.
    """
    table = _table(
        ["an epoch is", "loading an image", "step of single", "computing"]
        + [heading for short in SHORT.values() for heading in (short, "predicted")]
    )
    published = mean_epochs(times, data)
    for reading in times["sets"][data]["readings"]:
        config = compose_config(
            [*times["sets"][data]["overrides"], f"trainer.batch_size={reading['batch_size']}"]
        )
        cluster = dataclasses.replace(open_cluster(config.cluster, 2), data_s_per_image=0.0)
        graph = graph_of(config)
        step_ms = {
            name: 1e3
            * predicted(
                config, graph, strategy, 1 if name == "single" else 2, cluster=cluster
            ).timeline.step_s
            for name, strategy in STRATEGIES.items()
        }
        single, per_step = published["single"], 1e3 / reading["steps"]
        table.add_row(
            reading["text"],
            f"{1e3 * single / reading['images']:.1f}",
            f"{single * per_step:,.0f}",
            f"{step_ms['single']:.0f}",
            *(
                cell
                for name in SHORT
                for cell in (
                    f"{(published[name] - single) * per_step:+,.0f}",
                    f"{step_ms[name] - step_ms['single']:+.0f}",
                )
            ),
        )
    return table


def ranks(values: Sequence[float]) -> list[str]:
    """Return ranks from 1, smallest first; values within a thousandth share a rank, marked `=`."""
    found = []
    for value in values:
        alike = sum(abs(other - value) <= 1e-3 * value for other in values)
        place = 1 + sum(other < value * (1 - 1e-3) for other in values)
        found.append(f"{place}=" if alike > 1 else str(place))
    return found


def _table(names: Sequence[str]) -> Table:
    table = Table(box=None, show_edge=False, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for name in names:
        table.add_column(Text(name), justify="left" if name in LEFT else "right", no_wrap=True)
    return table


def main() -> int:
    """Print the tables."""
    times = json.loads(TIMES.read_text(encoding="utf-8"))
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    console.print(Text(f"{krizhevsky.SOURCE}: {krizhevsky.MACHINE}"))
    console.print(one_weird_trick_table())
    console.print(Text(f"\n{times['source']}; {times['batch_note']}"))
    for data in times["sets"]:
        console.print(Text(f"\n{data}"))
        console.print(epochs(times, data))
        console.print(
            Text("\nmilliseconds; by which a step is longer than that of single, published and predicted")
        )
        console.print(readings(times, data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
