"""Predict every combination of cluster, workers, batch size and strategy, or say why it is not
possible."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from parallel.cluster import Cluster, open_cluster
from parallel.config import Config, Searched, StrategyConfig, one_line, require
from parallel.graph import Graph
from parallel.prediction.predict import Prediction, Predictor, predict
from parallel.results.formatting import count, size
from parallel.strategies import Single
from parallel.strategies.named import NAMED

STRATEGIES: Mapping[str, StrategyConfig] = {"single": Single(), **NAMED, "searched": Searched()}
"""Options of each strategy by label."""


@dataclass(frozen=True, eq=False)
class Option:
    """One combination."""

    cluster: str
    workers: int
    batch_size: int
    """Global batch size."""
    strategy: str
    """Label of the strategy; empty if no strategy is possible."""
    prediction: Prediction | None
    reason: str = ""
    """Why the option is not possible; empty if it is."""

    @property
    def epoch_s(self) -> float:
        """Predicted seconds of an epoch. Raises `ValueError` if there is no prediction."""
        if self.prediction is None:
            raise ValueError(f"{self} has no prediction: {self.reason}")
        return self.prediction.epoch_s

    @property
    def possible(self) -> bool:
        """Whether the option has a prediction and fits the memory."""
        return self.prediction is not None and not self.reason

    def __str__(self) -> str:
        workers = count(self.workers, "worker")
        return " ".join(filter(None, (self.strategy, "on", self.cluster, "with", workers)))


@dataclass(frozen=True)
class Question:
    """The options to consider."""

    configs: Mapping[str, Config]
    """Workload and cluster configuration, by the cluster's name."""
    workers: Sequence[int]
    batch_sizes: Sequence[int]
    strategies: Sequence[str]
    """Labels, keys of `STRATEGIES`."""
    weak: bool = False
    """Whether the batch sizes are those of each worker."""


def select_strategies(words: Sequence[str]) -> list[str]:
    """Return the labels that the words select; a first word such as `model_parallel` selects all
    its variants."""
    chosen: list[str] = []
    for word in words:
        found = [label for label in STRATEGIES if word in (label, label.split()[0])]
        require(bool(found), "strategies", word, f"is not known; there are {', '.join(STRATEGIES)}")
        chosen += found
    return list(dict.fromkeys(chosen))


def options(question: Question, progress: Callable[[str], None] = lambda text: None) -> Iterator[Option]:
    """Yield all combinations.

    On one worker every strategy is the plan `single`, the only one that requires this number of
    workers; on more, `single` is left out.
    """
    predictor = Predictor()
    for name, config in question.configs.items():
        graph = predictor.graph(config)
        for workers in question.workers:
            progress(f"{name}, {count(workers, 'worker')}")
            try:
                cluster = open_cluster(config.cluster, workers, channels_last=config.trainer.channels_last)
            except ValueError as error:
                yield Option(name, workers, question.batch_sizes[0], "", None, one_line(error))
                continue
            exactly = [label for label, strategy in STRATEGIES.items() if strategy.fixed_workers == workers]
            flexible = [label for label in question.strategies if STRATEGIES[label].fixed_workers is None]
            for batch_size in question.batch_sizes:
                for label in exactly or flexible:
                    own = _configured(config, workers, batch_size, label)
                    yield _option(name, label, own, graph, cluster, question.weak)


def _configured(config: Config, workers: int, batch_size: int, label: str) -> Config:
    """Return the configuration of one option."""
    strategy = STRATEGIES[label]
    if isinstance(strategy, Searched) and isinstance(config.strategy, Searched):
        strategy = config.strategy  # with the configured method, time limit and folder of plans
    trainer = dataclasses.replace(config.trainer, batch_size=batch_size)
    return dataclasses.replace(config, workers=workers, strategy=strategy, trainer=trainer)


def _option(name: str, label: str, config: Config, graph: Graph, cluster: Cluster, weak: bool) -> Option:
    workers, batch_size = config.workers or 1, config.trainer.batch_size
    total = batch_size * workers if weak else batch_size
    try:
        found = predict(config, graph, cluster, weak)
    except ValueError as error:
        return Option(name, workers, total, label, None, one_line(error))
    if found.steps < 1:
        return Option(
            name,
            workers,
            total,
            label,
            None,
            f"trainer.batch_size={total} is more than the images of an epoch on {config.data.name}",
        )
    lacks = (
        ""
        if found.fits
        else (
            f"a worker needs {size(max(found.timeline.peak_memory))} of memory and has "
            f"{size(cluster.memory_bytes)}"
        )
    )
    return Option(name, workers, total, label, found, lacks)
