"""What a reader of a comparison has to know besides its numbers: one sentence per note.

A ratio that is missing, and the command that gives it; an interval that is missing; what else differs between the
runs, so that no ratio is taken for the strategy's doing alone.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections import defaultdict
from collections.abc import Iterable, Sequence

from parallel.config import Config
from parallel.results.comparison import BASELINE, TREATMENT, Comparison, Row
from parallel.results.records import Record, Workload
from parallel.results.statistics import speedup

HARMLESS = ("trainer.epochs", "trainer.seed", "data.root", "data.cache", "data.cache_limit_gb", "data.decoders",
            *(f"trainer.{name}" for name in TREATMENT))
"""What may differ between compared runs without a note."""
VERSIONS = ("python", "torch", "numpy", "parallel", "git_commit")


def notes(comparison: Comparison) -> list[str]:
    """The notes of one comparison, the most pressing first."""
    rows = comparison.rows
    records = [record for row in rows for record in row.records]
    return [*_missing(rows), *_no_interval(rows), *_whole_machine(rows), *_warmup(records), *_differences(records)]


def baseline_command(record: Record) -> str | None:
    """The command that runs the baseline of `record`; None if the record has no configuration (it was imported).

    Everything the workload consists of is written out, whatever the configuration files say by then.
    """
    if not record.config:
        return None
    defaults = dataclasses.asdict(Config())
    stated = set(f.name for f in dataclasses.fields(Workload))
    words = [f"strategy={BASELINE}", "workers=1"]
    for group in ("model", "data", "trainer"):
        values = record.config.get(group, {})
        words += [f"{group}={values['name']}"] if "name" in values else []
        words += [f"{group}.{name}={value}" for name, value in values.items() if name != "name" and value is not None
                  and (name in stated or value != defaults[group].get(name))]
    words += [f"cluster.device={record.device.split(':')[0]}", f"cluster.threads={record.threads}"]
    return "python -m parallel.train " + " ".join(shlex.quote(word) for word in words)


def _missing(rows: Sequence[Row]) -> Iterable[str]:
    seen = set()
    for record in (row.records[0] for row in rows if row.speedup is None):
        command = baseline_command(record)
        if (record.threads, command) not in seen:
            seen.add((record.threads, command))
            threads = "the same threads" if record.threads is None else f"{record.threads} thread(s)"
            how = f"; run it with: {command}" if command else ""
            yield f"No speedup for {record.strategy}: there is no {BASELINE} of this workload with {threads}{how}"


def _no_interval(rows: Sequence[Row]) -> Iterable[str]:
    for row in rows:
        if row.speedup is not None and row.speedup.low is None and row.role != "baseline":
            yield f"No interval for {row.label}: it or its baseline has a single epoch"


def _whole_machine(rows: Sequence[Row]) -> Iterable[str]:
    for machine in (row for row in rows if row.role == "machine"):
        threads = machine.key.threads
        whole = any(threads == r.environment.get("cpu_count") for r in machine.records)
        against = [f"{row.label} {speedup(machine.epoch_times, row.epoch_times)}" for row in rows
                   if row.key.strategy != BASELINE]
        yield (f"Against {BASELINE} with {threads} threads{' (the whole machine)' if whole else ''}, which a user of "
               f"one machine would run instead: {'; '.join(against)}")


def _warmup(records: Sequence[Record]) -> Iterable[str]:
    steps = sorted({record.warmup_steps for record in records if record.warmup_steps})
    if steps:
        yield f"Left out of every time: {' or '.join(map(str, steps))} warm-up steps before the first epoch"


def _differences(records: Sequence[Record]) -> Iterable[str]:
    """What else differs between the records, so that no ratio is taken for the strategy's doing alone."""
    values: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for group in ("model", "data", "trainer"):
            for name, value in record.config.get(group, {}).items():
                values[f"{group}.{name}"].add(json.dumps(value))
        for name in VERSIONS:
            values[name].add(str(record.environment.get(name)))
        variables = record.environment.get("variables") or {}
        # Thread counts stand in the record, and torchrun sets the variable for some worlds and not for others.
        steady = {k: v for k, v in variables.items() if not k.endswith("_NUM_THREADS") and k != "CUDA_VISIBLE_DEVICES"}
        values["environment variables"].add(json.dumps(steady, sort_keys=True))
    for name, found in values.items():
        if len(found) > 1 and name not in HARMLESS:
            yield f"These runs differ in {name}: {', '.join(sorted(found))}"
    if any(record.environment.get("git_dirty") for record in records):
        yield "Some of these runs had uncommitted changes: the commit does not describe their code"
