"""What can be had: all combinations of cluster, workers, batch and strategy, each predicted, or why it cannot be."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from parallel.cluster import Cluster, open_cluster
from parallel.config import Config, StrategyConfig
from parallel.graph import Graph
from parallel.prediction.predict import Prediction, graph_of, predict
from parallel.results.table import size
from parallel.strategies.named import NAMED

SINGLE, SEARCHED = "single", "searched"
STRATEGIES: Mapping[str, StrategyConfig] = {
    SINGLE: StrategyConfig(SINGLE), **{label: config for label, _, config in NAMED}, SEARCHED: StrategyConfig(SEARCHED)}
"""By label."""


@dataclass(frozen=True, eq=False)
class Option:
    """One combination."""

    cluster: str
    workers: int
    batch_size: int
    """Global."""
    strategy: str
    """A label; empty where no strategy can be."""
    prediction: Prediction | None
    reason: str = ""
    """Why it cannot be."""

    @property
    def epoch_s(self) -> float:
        """Predicted seconds of an epoch; `ValueError` for what cannot be."""
        if self.prediction is None:
            raise ValueError(f"{self} has no prediction: {self.reason}")
        return self.prediction.epoch_s

    @property
    def possible(self) -> bool:
        return self.prediction is not None and not self.reason

    def __str__(self) -> str:
        workers = f"{self.workers} worker{'s' * (self.workers > 1)}"
        return " ".join(filter(None, (self.strategy, "on", self.cluster, "with", workers)))


@dataclass(frozen=True)
class Question:
    """What to look at."""

    configs: Mapping[str, Config]
    """By cluster's name: the workload, and the cluster's configuration."""
    workers: Sequence[int]
    batch_sizes: Sequence[int]
    strategies: Sequence[str]
    weak: bool = False
    """A batch size is that of each worker."""


def options(question: Question, progress: Callable[[str], None] = lambda text: None) -> Iterator[Option]:
    """All combinations. With one worker every strategy is the same plan, `single`; with more there is no `single`."""
    graphs: dict[str, Graph] = {}
    for name, config in question.configs.items():
        workload = repr((config.model, config.data))
        graph = graphs[workload] if workload in graphs else graphs.setdefault(workload, graph_of(config))
        for workers in question.workers:
            progress(f"{name}, {workers} worker{'s' * (workers > 1)}")
            try:
                cluster = open_cluster(config.cluster, workers)
            except ValueError as error:
                yield Option(name, workers, question.batch_sizes[0], "", None, _line(error))
                continue
            for batch_size in question.batch_sizes:
                for label in [SINGLE] if workers == 1 else [s for s in question.strategies if s != SINGLE]:
                    yield _option(name, config, graph, cluster, workers, batch_size, label, question.weak)


def _option(name: str, config: Config, graph: Graph, cluster: Cluster, workers: int, batch_size: int, label: str,
            weak: bool) -> Option:
    # What was typed of strategy.… is about the search: method, time limit, where plans are kept.
    strategy = dataclasses.replace(config.strategy, name=SEARCHED) if label == SEARCHED else STRATEGIES[label]
    own = dataclasses.replace(config, workers=workers, strategy=strategy,
                              trainer=dataclasses.replace(config.trainer, batch_size=batch_size))
    total = batch_size * workers if weak else batch_size
    try:
        found = predict(own, graph, cluster, weak)
    except ValueError as error:
        return Option(name, workers, total, label, None, _line(error))
    if found.steps < 1:
        return Option(name, workers, total, label, None, f"trainer.batch_size={total} is more than the images of "
                      f"an epoch on {config.data.name}")
    lacks = "" if found.fits else (f"a worker needs {size(max(found.timeline.peak_memory))} of memory and has "
                                   f"{size(cluster.memory_bytes)}")
    return Option(name, workers, total, label, found, lacks)


def _line(error: ValueError) -> str:
    return " ".join(str(error).split())
