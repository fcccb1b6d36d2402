"""Time the comparison of many records, and the report of it.

    python scripts/bench_compare.py [--records 1000]

Makes records of five strategies that differ in what the name of the case says, writes them to a
temporary folder, and prints the CPU time of reading, comparing, notes and the page, and its size.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from parallel.results.comparison import compare
from parallel.results.comparison_export import as_json, comparison_values
from parallel.results.record_files import find_records, write_record
from parallel.results.records import Record
from parallel.results.report import write_report
from tests.support.made_records import WORKLOAD, made_record

EPOCHS = 20
PLAN = "\n".join(f"op{i}: split {i % 7} on worker {i % 4}" for i in range(40))
"""Text of the size of a plan of AlexNet."""
CASES = ("one workload", "100 plans", "1000 learning rates", "1000 workloads")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--case", choices=CASES)
    arguments = parser.parse_args()
    print(f"{'case':<22}{'read':>9}{'compare':>9}{'notes':>9}{'page':>9}{'page':>11}")
    for case in CASES if arguments.case is None else (arguments.case,):
        with tempfile.TemporaryDirectory() as folder:
            for number, record in enumerate(made(case, arguments.records)):
                write_record(Path(folder) / f"{number:05d}", record)
            report = Path(folder) / "report.html"
            marks = [time.process_time()]
            records, _ = find_records([Path(folder)])
            marks.append(time.process_time())
            comparisons = compare(records)
            marks.append(time.process_time())
            as_json(comparison_values(comparisons))
            marks.append(time.process_time())
            write_report(report, comparisons)
            marks.append(time.process_time())
            seconds = "".join(f"{end - begin:7.2f} s" for begin, end in zip(marks, marks[1:], strict=False))
            print(f"{case:<22}{seconds}{report.stat().st_size / 1e6:8.2f} MB", flush=True)


def made(case: str, number: int) -> Iterator[Record]:
    """Yield the records of a case."""
    rng = np.random.default_rng(0)
    strategies = ("single", "data_parallel", "one_weird_trick", "model_parallel", "ddp")
    for i in range(number):
        strategy = strategies[i % len(strategies)]
        changes: dict[str, Any] = {}
        if case == "100 plans" and strategy != "single":
            changes["plan"] = f"{PLAN} {i % 100}"
        elif strategy != "ddp":
            changes["plan"] = f"{PLAN} {strategy}"
        else:
            changes["plan"] = None
        if case == "1000 workloads":
            changes["workload"] = dataclasses.replace(WORKLOAD, batch_size=i + 1)
        trainer = {"seed": i, "lr": 1e-6 * (i + 1)} if case == "1000 learning rates" else {"seed": i}
        times = (5 * rng.lognormal(0, 0.02, EPOCHS)).tolist()
        yield made_record(strategy, times, name=f"run{i}", trainer=trainer, **changes)


if __name__ == "__main__":
    main()
