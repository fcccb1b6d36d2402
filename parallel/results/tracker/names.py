"""What a run is called at W&B: its name, its tags and its settings, as tables of runs show them.

The settings are flat. Those that are columns of the comparison have the same names there, others
have the names that they have in Hydra, without the group: `lr`, not `trainer.lr`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from parallel.config import Config
from parallel.results.formatting import count
from parallel.results.records import Workload

MOST_NAME, MOST_TAG = 128, 64
"""Longest name and tag that W&B accepts, in characters."""
GROUPS = ("strategy", "model", "data", "trainer", "cluster")
ALWAYS = (
    "epochs",
    "seed",
    "lr",
    "momentum",
    "weight_decay",
    "schedule",
    "channels_last",
    "compile",
    "dropout",
    "init",
)
"""Options that are settings even at their defaults, since tables of runs often show them. All
others are settings only where they differ from their defaults."""
NOISE = {
    "data": ("root", "cache", "cache_limit_gb", "decoders"),
    "trainer": ("trace", "check_finite", "checkpoint"),
    "cluster": ("device", "backend", "timeout_s", "hardware", "file", "cache"),
    "strategy": ("path",),
}
"""Options that change neither what a run learns nor the steps that it executes, and those that
`RunFacts` states better."""
SAID = ("strategy", "model", "data", "workers", "cluster.threads", "trainer.batch_size", "hosts")
"""Swept keys whose values are in every run's name or tags."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What distinguishes a run from others, known before its first step."""

    config: Config
    workload: Workload
    label: str
    """The strategy with its options, as in `Record`."""
    workers: int
    hosts: int
    device: str
    """cpu or cuda."""
    plan: str | None
    """Fingerprint of the plan. None: the engine runs no plan."""
    folder: str | None
    """Name of the run's folder in its sweep, which lists the swept keys. None: no sweep."""


def run_name(facts: RunFacts) -> str:
    """Return the name: `one_weird_trick a · 2 workers · batch 128 · digits`.

    What else differs within the sweep follows: `… · lr 0.01`.
    """
    threads = facts.config.cluster.threads
    place = count(facts.workers, "GPU" if facts.device == "cuda" else "worker")
    place += f" × {threads} threads" if facts.device == "cpu" and threads > 1 else ""
    place += f" on {facts.hosts} hosts" if facts.hosts > 1 else ""
    swept = [
        f"{key.rpartition('.')[2]} {value}"
        for key, value in swept_values(facts.folder or "")
        if key not in SAID and not key.startswith("strategy.")
    ]
    batch = f"batch {facts.workload.batch_size}"
    return " · ".join([facts.label, place, batch, facts.workload.data, *swept])[:MOST_NAME]


def swept_values(folder: str) -> Iterator[tuple[str, str]]:
    """Yield the keys and values of a folder's name in a sweep: `strategy=ddp,trainer.lr=0.1`.

    A comma may also be part of a value, but is not followed by a key there.
    """
    for part in re.split(r",(?=[\w./@]+=)", folder):
        key, sign, value = part.partition("=")
        if sign:
            yield key, value


def tags(facts: RunFacts) -> list[str]:
    """Return the tags: strategy, workers, hosts, device, data, model, and the sweep."""
    model = " ".join(filter(None, (facts.workload.model, facts.workload.variant)))
    words = [
        facts.config.strategy.name,
        count(facts.workers, "worker"),
        count(facts.hosts, "host"),
        facts.device,
        facts.workload.data,
        model,
        facts.config.sweep,
    ]
    return list(dict.fromkeys(word[:MOST_TAG] for word in words if word))


def settings(facts: RunFacts) -> dict[str, Any]:
    """Return the settings by name, without paths, and without defaults that nobody compares."""
    config = facts.config
    values: dict[str, Any] = {
        "strategy": config.strategy.name,
        "scheme": config.strategy.scheme,
        "workers": facts.workers,
        "threads": config.cluster.threads,
        "hosts": facts.hosts,
        "device": facts.device,
        "plan": facts.plan,
        **dataclasses.asdict(facts.workload),
    }
    for group in GROUPS:
        options = getattr(config, group)
        for option in dataclasses.fields(options):
            value = getattr(options, option.name)
            if option.name == "name" or option.name in NOISE.get(group, ()):
                continue
            if option.name in ALWAYS or value != option.default:
                values.setdefault(option.name, value)
    for option in dataclasses.fields(config):
        value = getattr(config, option.name)
        if option.name not in (*GROUPS, "tracker", "workers", "sweep", "resume") and value != option.default:
            values.setdefault(option.name, value)
    return {name: value for name, value in values.items() if value is not None}
