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

from parallel.config import TrainerConfig
from parallel.config.strategy import BASELINE
from parallel.results.comparison import Comparison
from parallel.results.disturbance import too_few_cores
from parallel.results.formatting import count, percent
from parallel.results.machines import other_clocks, several_machines
from parallel.results.prediction_check import UNCALIBRATED
from parallel.results.records import Record, Workload
from parallel.results.result import Result
from parallel.results.runs import Runs
from parallel.results.settings import NEITHER, flat, settings_of, short_names, speed_settings, varying, words
from parallel.results.statistics import FEWEST_EPOCHS, Variation

LEFT_OUT = NEITHER - {"trainer.seed"} | {"trainer.batch_per_worker"}
"""Options that the command of a baseline need not state: its global batch is stated."""
WITHIN_RUN = "†"
"""Mark of intervals that cover the variation within a run only."""
SHARED_GPU = "‡"
"""Mark of rows whose workers shared a GPU."""
VERSIONS = ("python", "torch", "numpy", "parallel", "git_commit")


def notes(comparison: Comparison) -> list[str]:
    """Return the notes of one comparison, the most important first."""
    results = comparison.results
    records = [record for result in results for record in result.records]
    return [
        *_untimed(comparison.untimed),
        *_copies(comparison.copies),
        *(f"Not trained: {result.not_trained}" for result in results if result.not_trained),
        *_restarted(records),
        *_stragglers(records),
        *_missing_speedups(results),
        *_other_baselines(results),
        *several_machines(results),
        *other_clocks(results),
        *_disturbed(results),
        *_unpredicted(results),
        *_intervals(results),
        *_whole_machine(results),
        *_warmup(records),
        *_differences(records),
    ]


def doubts(results: Sequence[Result]) -> list[str]:
    """Return the notes on what the marks beside the numbers of results say."""
    return [
        *(f"Not trained: {result.not_trained}" for result in results if result.not_trained),
        *_disturbed(results),
        *_unpredicted(results),
        *_intervals(results),
    ]


def baseline_command(record: Record) -> str | None:
    """Return the command that runs the baseline of `record`. None: the record has no configuration
    (it was imported).

    The command states the whole workload, so that later changes of the configuration files do not
    matter.
    """
    if not record.config:
        return None
    defaults = {f"trainer.{name}": value for name, value in flat(dataclasses.asdict(TrainerConfig())).items()}
    stated = set(f.name for f in dataclasses.fields(Workload))
    words = [f"strategy={BASELINE}", "workers=1"]
    for group in ("model", "data", "trainer"):
        values = flat(record.config.get(group, {}))
        words += [f"{group}={values['name']}"] if "name" in values else []
        for name, value in values.items():
            chosen = name in stated or value != defaults.get(f"{group}.{name}")
            if name != "name" and value is not None and chosen and f"{group}.{name}" not in LEFT_OUT:
                words.append(f"{group}.{name}={value}")
    words += [f"cluster.device={record.device.split(':')[0]}", f"cluster.threads={record.threads}"]
    program = [*_emulation(record.environment.get("emulated")), "-m", "parallel.train"]
    return f"python {' '.join(map(shlex.quote, [*program, *words]))}"


def _emulation(cluster: Mapping[str, Any] | None) -> list[str]:
    """Return the arguments that run a command on host 0 of a like cluster; none if it was real."""
    if cluster is None:
        return []
    hosts = cluster["hosts"]
    wanted = [f"--hosts={hosts}"]
    wanted += [f"--{name}={cluster[name]}" for name in ("rate", "delay") if cluster.get(name) is not None]
    changed = isinstance(cluster.get("rate"), list) or cluster.get("speed", "100%") != "100%"
    on = f"--workers-per-host={','.join(['1', *['0'] * (hosts - 1)])}"
    # A cluster that was changed after it was made must still be there.
    return ["-m", "parallel.emulate", "run", *([] if changed else wanted), on, "--"]


def _untimed(records: Sequence[Record]) -> Iterable[str]:
    for record in records:
        yield (
            f"Left out: {record.label} ({record.name}), because none of its epochs was trained in one piece "
            "by this run"
        )


def _copies(records: Sequence[Record]) -> Iterable[str]:
    for record in records:
        place = "" if record.directory is None else f" in {record.directory}"
        yield f"Left out: {record.label} ({record.name}){place}, a copy of another record, no repetition"


def _restarted(records: Sequence[Record]) -> Iterable[str]:
    for record in records:
        untimed = sum(not epoch.timed for epoch in record.epochs)
        if record.restarts:
            yield (
                f"{record.label} ({record.name}) was started again {count(record.restarts, 'time')}: "
                f"{count(untimed, 'epoch')} left out of its times, {record.lost_s:.1f} s lost"
            )


def _stragglers(records: Sequence[Record]) -> Iterable[str]:
    for record in records:
        for straggler in record.stragglers or ():
            yield f"Straggler in {record.label} ({record.name}): {straggler.sentence(len(record.epochs))}"


def _disturbed(results: Sequence[Result]) -> Iterable[str]:
    """Name results whose times are not those of their configuration alone."""
    for result in results:
        if result.noisy:
            yield f"Noisy: {result.noisy}"
        if said := next(filter(None, map(too_few_cores, result.records)), ""):
            yield f"{result.label} {said}: its workers wait for each other's cores"
        if result.efficiency is not None and result.efficiency > 1:
            yield (
                f"{result.label} has an efficiency of {percent(result.efficiency, 0)}: more than "
                "linear speedups come from caches, or from a baseline that was disturbed"
            )


def _missing_speedups(results: Sequence[Result]) -> Iterable[str]:
    if results and results[0].records[0].side_by_side:
        yield (
            "No speedups: jobs ran side by side on the same machine, and the times of one depend on the "
            "others; without hydra.launcher.jobs they run one after another"
        )
        return
    if shared := [result.label for result in results if result.shares_gpu]:
        yield (
            f"{SHARED_GPU} Workers shared a GPU (cluster.share_gpu=true): no speedups and no scaling for "
            f"{', '.join(shared)}"
        )
    short = short_names(varying(result.key.settings for result in results))
    seen = set()
    for result in (result for result in results if result.speedup is None and not result.shares_gpu):
        record = result.records[0]
        needed = speed_settings(result.key.settings)
        if (record.threads, needed) in seen:
            continue
        seen.add((record.threads, needed))
        command = baseline_command(record)
        threads = "the same threads" if record.threads is None else f"{record.threads} thread(s)"
        names = {name for name, _ in needed}
        same = words((short[name], v) for name, v in result.key.settings if name in names and name in short)
        how = f"; run it with: {command}" if command else ""
        yield (
            f"No speedup for {record.strategy}: there is no {BASELINE} of this workload with "
            f"{threads}{same and f' and {same}'}{how}"
        )


def _other_baselines(results: Sequence[Result]) -> Iterable[str]:
    """Name baselines with other settings than their results, which do not change speed."""
    for result in results:
        if not result.baseline or result.role == "baseline":
            continue
        own, theirs = dict(result.key.settings), dict(settings_of(result.baseline[0]))
        other = [(name, value) for name, value in theirs.items() if name in own and own[name] != value]
        if other:
            yield (
                f"The baseline of {result.label} has {words(other)}: no {BASELINE} has its own values, "
                "which change no speed"
            )


def _unpredicted(results: Sequence[Result]) -> Iterable[str]:
    """Name rows whose measurement contradicts their prediction, and those predicted without a
    calibration."""
    checks = [(result, check) for result in results if (check := result.predicted) is not None]
    for result, check in checks:
        if check.outside:
            yield f"! {check.sentence(result.label, result.time_split())}"
    rough = [result.label for result, check in checks if not check.calibrated]
    if rough:
        yield f"{UNCALIBRATED} Predicted without a calibration for these runs: {', '.join(rough)}"


def _intervals(results: Sequence[Result]) -> Iterable[str]:
    """Name missing intervals, and say what those that there are cover."""
    covered: dict[Variation | None, list[str]] = defaultdict(list)
    for result in results:
        if result.speedup is not None and result.role != "baseline":
            covered[result.speedup.covers].append(result.label)
    if without := covered[None]:
        yield (
            f"No interval for {', '.join(without)}: single runs, one side with fewer than {FEWEST_EPOCHS} "
            "epochs; repeats=3 in the sweep runs each three times"
        )
    if covered["within-run"]:
        yield (
            f"Intervals marked {WITHIN_RUN} cover the variation within a run only, not that between runs "
            "(repeats=3 in the sweep runs each three times)"
        )
    if paired := covered["rounds"]:
        yield (
            f"Speedup and interval by rounds for {', '.join(paired)}: the baseline's time ÷ its own in each "
            "round of the sweep (t-interval of the differences of their logarithms)"
        )
    if independent := covered["runs"]:
        yield (
            f"Interval of independent runs for {', '.join(independent)}: its runs and the baseline's are not "
            "the complete rounds of one sweep, each of the two first in half of them"
        )


def _whole_machine(results: Sequence[Result]) -> Iterable[str]:
    for machine in (r for r in results if r.role == "machine" and not r.records[0].side_by_side):
        threads = machine.key.threads
        whole = any(threads == r.environment.get("cpu_count") for r in machine.records)
        against = [
            f"{result.label} {Runs(result.records).speedup_over(Runs(machine.records))}"
            for result in results
            if not result.key.baseline and not result.shares_gpu
        ]
        if not against:
            continue
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
    """Name what differs besides the strategy and the settings, which have columns, so that no ratio is
    attributed to the strategy alone."""
    epochs = sorted({len(record.epochs) for record in records})
    if len(epochs) > 1:
        yield (
            f"These runs have different numbers of epochs ({', '.join(map(str, epochs))}): their accuracies "
            "are not those of the same training"
        )
    values: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for name in VERSIONS:
            values[name].add(str(record.environment.get(name)))
        cuda = record.environment.get("cuda") or {}
        for name in ("runtime", "driver", "cudnn", "nccl"):
            values[f"cuda {name}"].add(str(cuda.get(name)))
        variables = record.environment.get("variables") or {}
        # The record has the threads and each host's interface; their variables are set only in
        # worlds of several processes.
        steady = {
            name: value
            for name, value in variables.items()
            if not name.endswith(("_NUM_THREADS", "_SOCKET_IFNAME")) and name != "CUDA_VISIBLE_DEVICES"
        }
        values["environment variables"].add(json.dumps(steady, sort_keys=True))
    for name, found in values.items():
        if len(found) > 1:
            yield f"These runs differ in {name}: {', '.join(sorted(found))}"
    if any(record.environment.get("git_dirty") for record in records):
        yield "Some of these runs had uncommitted changes: the commit does not describe their code"
