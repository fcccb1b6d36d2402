"""Turn epoch times printed in the literature into records: `python scripts/import_epoch_times.py TIMES.json OUT`.

TIMES.json: `source`, a sentence, and `experiments`, each with `data`, `strategy` and `epoch_times_s`; `workers`,
`device` and `gpus` where they are not 2 (`single`: 1), cuda and unknown. What the source does not say is left unknown.
Then `python -m parallel.compare OUT` treats them like any other runs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from parallel.results.record_files import write_record
from parallel.results.records import Epoch, Record, Workload


def records_from(published: dict[str, Any]) -> list[Record]:
    """A record per experiment. Raises `ValueError` for a field that is missing."""
    try:
        return [_record(published["source"], experiment) for experiment in published["experiments"]]
    except KeyError as error:
        raise ValueError(f"the epoch times lack the field {error}") from None


def _record(source: str, experiment: dict[str, Any]) -> Record:
    strategy = experiment["strategy"]
    workload = Workload(model="alexnet", variant=None, num_classes=None, image_size=None, data=experiment["data"],
                        train_images=None, batch_size=None, precision=None)
    epochs = (Epoch(epoch=i, seconds=s) for i, s in enumerate(experiment["epoch_times_s"], start=1))
    return Record(
        name=f"{experiment['data']} {strategy}", started=None, finished=None, command=source,
        workload=workload, strategy=strategy, workers=1 if strategy == "single" else experiment.get("workers", 2),
        threads=None, device=experiment.get("device", "cuda"), backend=None, warmup_steps=None,
        environment={"gpus": experiment.get("gpus", [])}, epochs=tuple(epochs),
    )


def main(arguments: list[str]) -> int:
    """Write a run directory per experiment. Returns the exit code."""
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
