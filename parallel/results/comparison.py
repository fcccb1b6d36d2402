"""Comparisons: which records are comparable, and the statistics of each group of them.

A comparison holds the records of one workload on one kind of hardware. Records of the same
configuration (strategy with its options, plan, workers, threads, hosts, network, and every other setting
that changes what a run learns or how fast it is) are pooled into one `Result`: they differ in seeds and
paths only. Settings in which the results differ are part of their labels and columns of the table.

The baseline of a result is the one-worker run with the same threads per worker and the same settings.
Without one, a baseline that differs only in settings without effect on speed takes its place.

A one-worker run with more threads than the workers of the other results is what a user of a single
machine would run instead of any of them. It has the role `machine` and is compared with the same
baseline as the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parallel.results.baselines import Baselines, hardware, is_timed
from parallel.results.hosts import slowest_bandwidth
from parallel.results.labels import network_names, schemes_of, shown_settings, telling_settings
from parallel.results.records import Record, Workload, plan_fingerprint
from parallel.results.result import Key, Result, Role, pooled
from parallel.results.runs import Runs
from parallel.results.settings import settings_of, short_names, varying, words


class TooFewRuns(ValueError):
    """What is asked for needs runs that have not been made, or have not finished."""


@dataclass(frozen=True)
class Comparison:
    """The results of one workload on one kind of hardware, the baseline first."""

    workload: Workload
    hardware: str
    results: tuple[Result, ...]
    untimed: tuple[Record, ...] = ()
    """Runs that are left out, because none of their epochs was timed."""
    copies: tuple[Record, ...] = ()
    """Copies of compared records, which are left out: they are no repetitions."""


def compare(records: Iterable[Record]) -> list[Comparison]:
    """Group records by workload and hardware: one `Comparison` for each, in the order of their
    first records.

    Strategies have the order of their first records too, after the baseline's. Raises
    `TooFewRuns` if no run has a timed epoch.
    """
    records = tuple(records)
    strategies = dict.fromkeys(r.strategy for r in sorted(records, key=lambda record: not record.baseline))
    order = {strategy: place for place, strategy in enumerate(strategies)}
    groups: dict[tuple[Workload, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.workload, hardware(record)].append(record)
    copied = {place: _copies(group) for place, group in groups.items()}
    for place, copies in copied.items():
        left_out = set(map(id, copies))
        groups[place] = [record for record in groups[place] if id(record) not in left_out]
    comparisons = [
        Comparison(
            workload,
            machine,
            _results([record for record in group if is_timed(record)], order),
            tuple(record for record in group if not is_timed(record)),
            copied[workload, machine],
        )
        for (workload, machine), group in groups.items()
    ]
    found = [comparison for comparison in comparisons if comparison.results]
    if comparisons and not found:
        raise TooFewRuns("none of the runs has an epoch that it trained in one piece: there are no times")
    return found


def _copies(records: Sequence[Record]) -> tuple[Record, ...]:
    """Return the records that equal an earlier one in all but their folder."""
    seen: dict[Any, list[Record]] = defaultdict(list)
    copies = []
    for record in records:
        alike = seen[record.name, record.started, record.finished, record.label, record.epochs[0].seconds]
        if record in alike:
            copies.append(record)
        else:
            alike.append(record)
    return tuple(copies)


def describe(workload: Workload) -> str:
    """Return a workload in one line, without what is unknown."""
    w = workload
    parts = (
        f"{w.model} {w.variant}" if w.variant else w.model,
        f"{w.data}, {w.train_images:,} images" if w.train_images else w.data,
        f"{w.image_size} px" if w.image_size else None,
        f"{w.num_classes} classes" if w.num_classes else None,
        f"batch {w.batch_size:,}" if w.batch_size else None,
        w.precision,
    )
    return " · ".join(part for part in parts if part)


def _results(records: Sequence[Record], order: Mapping[str, int]) -> tuple[Result, ...]:
    pools: dict[Key, list[Record]] = defaultdict(list)
    networks = network_names(
        [bandwidth for record in records if (bandwidth := slowest_bandwidth(record.hosts)) is not None]
    )
    for record in records:
        pools[_key(record, networks)].append(record)
    names = short_names(varying(key.settings for key in pools))
    schemes, told = schemes_of(pools, names), telling_settings(pools, names)
    threads_of_parallel = {key.threads for key in pools if not key.baseline}
    baselines = Baselines(records)
    runs: dict[int, Runs] = {}
    """The runs of a baseline by the first of its records: many results share one."""
    results = []
    for key, pool in pools.items():
        threads, role = _reference(key, threads_of_parallel)
        baseline = tuple(pool) if role == "baseline" else baselines.of(key.settings, threads)
        settings = shown_settings(key.settings, names)
        short = schemes[key]
        results.append(
            pooled(
                key=key,
                scheme=f"{short} {words(told[key])}".strip(),
                short_scheme=short,
                settings=settings,
                place=order[key.strategy],
                role=role,
                pool=pool,
                baseline=runs.setdefault(id(baseline[0]), Runs(baseline)) if baseline else Runs(()),
            )
        )
    return tuple(sorted(results, key=_order))


def _key(record: Record, networks: Mapping[float, str]) -> Key:
    bandwidth = slowest_bandwidth(record.hosts)
    plan = None if record.plan is None else plan_fingerprint(record.plan)
    return Key(
        record.strategy,
        record.label,
        record.workers,
        record.threads,
        settings_of(record),
        plan,
        record.baseline,
        tuple(len(host.workers) for host in record.hosts) or None,
        None if bandwidth is None else networks[bandwidth],
    )


def _reference(key: Key, threads_of_parallel: Collection[int | None]) -> tuple[int | None, Role]:
    """Return the threads of the baseline that a result is compared with, and the result's role."""
    if not key.baseline:
        return key.threads, ""
    fewer = [t for t in threads_of_parallel if t is not None and key.threads is not None and t < key.threads]
    if len(fewer) == 1 and key.threads not in threads_of_parallel:
        return fewer[0], "machine"
    return key.threads, "baseline"


def _order(result: Result) -> tuple[Any, ...]:
    key = result.key
    # Numbers before texts: values of one setting may have both types.
    settings = [
        (name, (0, value, "") if isinstance(value, (int, float)) else (1, 0, str(value)))
        for name, value in result.settings
    ]
    return (
        not key.baseline,
        key.workers,
        key.threads or 0,
        result.place,
        result.short_scheme,
        len(key.hosts or ()),
        settings,
    )
