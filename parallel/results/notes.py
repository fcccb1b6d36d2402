"""Notes on a comparison, which readers need in addition to its numbers, one sentence each.

They name missing speedups with the command that runs the baseline, missing intervals, and
everything besides the strategy that differs between the runs.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from parallel.config import CheckpointConfig, TrainerConfig
from parallel.config.strategy import BASELINE
from parallel.results.comparison import TREATMENT, Comparison, Result
from parallel.results.formatting import count
from parallel.results.records import Record, Workload
from parallel.results.statistics import speedup

CHECKPOINTS = tuple(f"trainer.checkpoint.{field.name}" for field in dataclasses.fields(CheckpointConfig))
HARMLESS = (
    "trainer.epochs",
    "trainer.seed",
    "data.root",
    "data.cache",
    "data.cache_limit_gb",
    "data.decoders",
    *(f"trainer.{name}" for name in TREATMENT),
    *CHECKPOINTS,
)
"""Fields that may differ between compared runs without a note."""
LEFT_OUT = ("data.cache", "data.cache_limit_gb", "data.decoders", *CHECKPOINTS)
"""Fields that change neither the workload nor its location."""
VERSIONS = ("python", "torch", "numpy", "parallel", "git_commit")


def notes(comparison: Comparison) -> list[str]:
    """Return the notes of one comparison, the most important first."""
    results = comparison.results
    records = [record for result in results for record in result.records]
    return [
        *_untimed(comparison.untimed),
        *_restarted(records),
        *_missing_speedups(results),
        *_missing_intervals(results),
        *_whole_machine(results),
        *_warmup(records),
        *_differences(records),
    ]


def baseline_command(record: Record) -> str | None:
    """Return the command that runs the baseline of `record`. None: the record has no configuration
    (it was imported).

    The command states the whole workload, so that later changes of the configuration files do not
    matter.
    """
    if not record.config:
        return None
    defaults = {
        f"trainer.{name}": value for name, value in _flat(dataclasses.asdict(TrainerConfig())).items()
    }
    stated = set(f.name for f in dataclasses.fields(Workload))
    words = [f"strategy={BASELINE}", "workers=1"]
    for group in ("model", "data", "trainer"):
        values = _flat(record.config.get(group, {}))
        words += [f"{group}={values['name']}"] if "name" in values else []
        for name, value in values.items():
            chosen = name in stated or value != defaults.get(f"{group}.{name}")
            if name != "name" and value is not None and chosen and f"{group}.{name}" not in LEFT_OUT:
                words.append(f"{group}.{name}={value}")
    words += [f"cluster.device={record.device.split(':')[0]}", f"cluster.threads={record.threads}"]
    return "python -m parallel.train " + " ".join(shlex.quote(word) for word in words)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a group, with dotted names for those of its mappings."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": option for inner, option in _flat(value).items()}
        else:
            flat[name] = value
    return flat


def _untimed(records: Sequence[Record]) -> Iterable[str]:
    for record in records:
        yield (
            f"Left out: {record.label} ({record.name}), because none of its epochs was trained in one piece "
            "by this run"
        )


def _restarted(records: Sequence[Record]) -> Iterable[str]:
    for record in records:
        untimed = sum(not epoch.timed for epoch in record.epochs)
        if record.restarts:
            yield (
                f"{record.label} ({record.name}) was started again {count(record.restarts, 'time')}: "
                f"{count(untimed, 'epoch')} left out of its times, {record.lost_s:.1f} s lost"
            )


def _missing_speedups(results: Sequence[Result]) -> Iterable[str]:
    seen = set()
    for record in (result.records[0] for result in results if result.speedup is None):
        command = baseline_command(record)
        if (record.threads, command) not in seen:
            seen.add((record.threads, command))
            threads = "the same threads" if record.threads is None else f"{record.threads} thread(s)"
            how = f"; run it with: {command}" if command else ""
            yield (
                f"No speedup for {record.strategy}: there is no {BASELINE} of this workload with "
                f"{threads}{how}"
            )


def _missing_intervals(results: Sequence[Result]) -> Iterable[str]:
    for result in results:
        if result.speedup is not None and result.speedup.low is None and result.role != "baseline":
            yield f"No interval for {result.label}: it or its baseline has a single epoch"


def _whole_machine(results: Sequence[Result]) -> Iterable[str]:
    for machine in (result for result in results if result.role == "machine"):
        threads = machine.key.threads
        whole = any(threads == r.environment.get("cpu_count") for r in machine.records)
        against = [
            f"{result.label} {speedup(machine.epoch_times, result.epoch_times)}"
            for result in results
            if not result.key.baseline
        ]
        machine_name = " (the whole machine)" if whole else ""
        yield (
            f"Against {BASELINE} with {threads} threads{machine_name}, which a user of one machine would "
            f"run instead: {'; '.join(against)}"
        )


def _warmup(records: Sequence[Record]) -> Iterable[str]:
    steps = sorted({record.warmup_steps for record in records if record.warmup_steps})
    if steps:
        yield f"Left out of every time: {' or '.join(map(str, steps))} warm-up steps before the first epoch"


def _differences(records: Sequence[Record]) -> Iterable[str]:
    """Name what differs besides the strategy, so that no ratio is attributed to the strategy
    alone."""
    values: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for group in ("model", "data", "trainer"):
            for name, value in _flat(record.config.get(group, {})).items():
                values[f"{group}.{name}"].add(json.dumps(value))
        for name in VERSIONS:
            values[name].add(str(record.environment.get(name)))
        variables = record.environment.get("variables") or {}
        # The record has the threads; torchrun sets the variable only for worlds of several
        # processes.
        steady = {
            name: value
            for name, value in variables.items()
            if not name.endswith("_NUM_THREADS") and name != "CUDA_VISIBLE_DEVICES"
        }
        values["environment variables"].add(json.dumps(steady, sort_keys=True))
    for name, found in values.items():
        if len(found) > 1 and name not in HARMLESS:
            yield f"These runs differ in {name}: {', '.join(sorted(found))}"
    if any(record.environment.get("git_dirty") for record in records):
        yield "Some of these runs had uncommitted changes: the commit does not describe their code"
