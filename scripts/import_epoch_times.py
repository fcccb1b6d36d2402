"""Convert published epoch times to records: `python scripts/import_epoch_times.py TIMES.json OUT`.

TIMES.json contains `source` (a sentence) and `experiments`. Each experiment has `data`, `strategy`
and `epoch_times_s`, and optionally `workers` (default 2; `single`: 1), `device` (default cuda) and
`gpus` (default unknown). Fields that the source does not state stay unknown. `python -m
parallel.compare OUT` then treats the records like those of any run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from parallel.config.strategy import BASELINE
from parallel.results.record_files import write_record
from parallel.results.records import Epoch, Record, Workload


def records_from(published: dict[str, Any]) -> list[Record]:
    """Return one record per experiment. Raises `ValueError` for a field that is missing."""
    try:
        return [_record(published["source"], experiment) for experiment in published["experiments"]]
    except KeyError as error:
        raise ValueError(f"the epoch times lack the field {error}") from None


def _record(source: str, experiment: dict[str, Any]) -> Record:
    strategy = experiment["strategy"]
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
        workers=1 if strategy == BASELINE else experiment.get("workers", 2),
        threads=None,
        device=experiment.get("device", "cuda"),
        backend=None,
        warmup_steps=None,
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
