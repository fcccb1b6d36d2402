"""Convert published epoch times to records: `python scripts/import_epoch_times.py TIMES.json OUT`.

TIMES.json contains `source` (a sentence) and `experiments`. Each experiment has `data`, `strategy`
and `epoch_times_s`, and optionally `workers` (default 2; `single`: 1), `device` (default cuda) and
`gpus` (default unknown). Fields that the source does not state stay unknown. `sets` may state for
each `data` the `overrides` of a configuration that describes it, with its cluster: records then have
our prediction. `python -m parallel.compare OUT` treats the records like those of any run, and puts
their epochs beside those of runs on the same data set.
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from parallel.cli.compose import compose_config
from parallel.cluster import open_cluster
from parallel.config.strategy import BASELINE
from parallel.graph import Graph
from parallel.graph.configured import graph_of
from parallel.prediction.predict import predict
from parallel.results.predicted import Predicted
from parallel.results.record_files import write_record
from parallel.results.records import Epoch, Record, Workload


@dataclass(frozen=True)
class Described:
    """The configuration that describes the runs on one data set, with their cluster."""

    overrides: list[str]

    @cached_property
    def _graph(self) -> Graph:
        return graph_of(compose_config(self.overrides))

    def predicted(self, strategy: str, workers: int) -> Predicted:
        """Return the predicted epoch of a strategy."""
        config = compose_config([*self.overrides, f"strategy={strategy}", f"workers={workers}"])
        cluster = open_cluster(config.cluster, workers)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the record says that nothing was measured: calibrated=False
            found = predict(config, self._graph, cluster)
        return Predicted(
            epoch_s=found.epoch_s,
            step_s=found.timeline.loaded_step_s,
            compute_s=found.shares.compute * found.epoch_s,
            communication_s=found.shares.exposed * found.epoch_s,
            idle_s=found.shares.idle * found.epoch_s,
            data_wait_s=found.shares.data * found.epoch_s,
            cluster=cluster.name,
            calibrated=False,
        )


def records_from(published: dict[str, Any]) -> list[Record]:
    """Return one record per experiment. Raises `ValueError` for a field that is missing."""
    try:
        described = {data: Described(of["overrides"]) for data, of in published.get("sets", {}).items()}
        return [
            _record(published["source"], of, described.get(of["data"])) for of in published["experiments"]
        ]
    except KeyError as error:
        raise ValueError(f"the epoch times lack the field {error}") from None


def _record(source: str, experiment: dict[str, Any], described: Described | None) -> Record:
    strategy = experiment["strategy"]
    workers = 1 if strategy == BASELINE else experiment.get("workers", 2)
    workload = Workload(
        model="alexnet",
        variant=None,
        num_classes=None,
        image_size=None,
        data=experiment["data"],
        train_images=None,
        batch_size=None,
        precision=None,
    )
    epochs = (Epoch(epoch=i, seconds=s) for i, s in enumerate(experiment["epoch_times_s"], start=1))
    return Record(
        name=f"{experiment['data']} {strategy}",
        started=None,
        finished=None,
        command=source,
        workload=workload,
        strategy=strategy,
        label=strategy,
        baseline=strategy == BASELINE,
        workers=workers,
        threads=None,
        device=experiment.get("device", "cuda"),
        backend=None,
        warmup_steps=None,
        predicted=None if described is None else described.predicted(strategy, workers),
        environment={"gpus": experiment.get("gpus", [])},
        epochs=tuple(epochs),
    )


def main(arguments: list[str]) -> int:
    """Write one run directory per experiment and return the exit code."""
    if len(arguments) != 2:
        print("usage: python scripts/import_epoch_times.py TIMES.json OUT", file=sys.stderr)
        return 2
    times, out = Path(arguments[0]), Path(arguments[1])
    try:
        records = records_from(json.loads(times.read_text(encoding="utf-8")))
        for record in records:
            write_record(out / record.name.replace(" ", "-"), record)
    except (OSError, ValueError) as error:
        print(f"import_epoch_times: {error}", file=sys.stderr)
        return 2
    print(f"{len(records)} records in {out}; compare them: python -m parallel.compare {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
