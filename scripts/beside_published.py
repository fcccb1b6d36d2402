"""Compare predictions with published results: python scripts/beside_published.py

Prints speedups of one weird trick at 2, 4 and 8 GPUs on the machine of Krizhevsky 2014, and epochs
of the strategies with and without loading on the machine of Leon 2019. The published numbers and
their sources are in published.yaml; docs/predictions.md discusses the differences. No number of a
cluster was fitted to a result that is predicted here. Two were taken from the single-GPU baselines,
as conf/cluster/k20.yaml and two_p100.yaml state: the speed of one GPU, and loading.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
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
from parallel.strategies import DataParallel, ModelParallel, OneWeirdTrick, Single

PUBLISHED = Path(__file__).with_name("published.yaml")
WIDTH = 130


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


def one_weird_trick_table(published: Mapping[str, Any]) -> Table:
    """Return hours and speedups of the paper's rows, and of each scheme that matches a row."""
    config = compose_config([*published["overrides"], f"trainer.batch_size={published['batch_of_one']}"])
    graph, epochs = graph_of(config), published["epochs"]
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
    one = published["batch_of_one"]
    table.add_row(
        "1",
        f"{one}, {one}",
        f"{published['single_hours']:.2f}",
        "1×",
        "",
        f"{hours(single, epochs):.2f}",
        "1×",
        "",
        "",
        "",
    )
    images = epochs * known_images(config.data)
    alone_ms = 3.6e6 * published["single_hours"] * one / images
    for row in published["rows"]:
        gpus = row["gpus"]
        for scheme in "abc" if row["whole"] else "bc":  # scheme a has a single pass
            update = "step" if row["whole"] else "pass"
            strategy = OneWeirdTrick(scheme=scheme, update=update)
            found = predicted(config, graph, strategy, gpus, weak=True)
            first = scheme in ("a" if row["whole"] else "b")
            lost = 3.6e6 * row["hours"] * one * gpus / images - alone_ms
            table.add_row(
                *(
                    [
                        str(gpus),
                        f"{one * gpus:,}, {one * gpus if row['whole'] else one:,}",
                        f"{row['hours']:.2f}",
                        f"{row['speedup']:.2f}×",
                    ]
                    if first
                    else [""] * 4
                ),
                scheme,
                f"{hours(found, epochs):.2f}",
                f"{found.speedup:.2f}×",
                f"{found.speedup / row['speedup']:.2f}",
                f"{lost:.0f}" if first else "",
                f"{1e3 * (found.timeline.step_s - single.timeline.step_s):.0f}",
            )
    return table


STRATEGIES = {
    "single": Single(),
    "data_parallel": DataParallel(),
    "model_parallel": ModelParallel(scheme="layers"),
    "one_weird_trick": OneWeirdTrick(scheme="a"),
}


def epochs(published: Mapping[str, Any]) -> Table:
    """Return epoch times of the strategies, published and predicted, with loading and without."""
    config = compose_config(published["overrides"])
    graph = graph_of(config)
    loading = open_cluster(config.cluster, 2)
    no_loading = dataclasses.replace(loading, data_s_per_image=0.0)
    rows = {
        name: (
            published["epoch_s"][name],
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
        table.add_column(Text(name), justify="left" if name == "strategy" else "right")
    return table


def main() -> int:
    """Print the tables."""
    published = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    console.print(Text(published["one_weird_trick"]["source"]))
    console.print(one_weird_trick_table(published["one_weird_trick"]))
    console.print(Text(f"\n{published['two_p100']['source']}"))
    for name, of in published["two_p100"]["sets"].items():
        console.print(Text(f"\n{name}"))
        console.print(epochs(of))
    return 0


if __name__ == "__main__":
    sys.exit(main())
