"""The settings of a run that separate it from others in a comparison.

Everything in the configuration that changes what a run learns or how fast it is separates rows; only
seeds and repetitions pool. The options in `NEITHER` change neither; what the workload, the strategy's
label and the number of workers state is part of the key of a row already. Everything else separates, also
options that later versions add. What the system chose is a setting, too: backend, interface, transport,
cores.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from parallel.config import AUTO, NEVER
from parallel.results.records import Record

Settings = tuple[tuple[str, Any], ...]
"""Names as Hydra overrides have them (`trainer.lr`), in the order of the configuration, and values."""

SHARED_MEMORY, LOOPBACK = "shared memory", "loopback"
"""Ways in which workers of one host pass messages."""
STATED = frozenset(
    [
        *("model.name", "model.variant", "model.num_classes", "model.image_size"),
        *("data.name", "data.num_classes", "data.train_images"),
        *("trainer.batch_size", "trainer.batch_per_worker", "trainer.precision"),
        *("workers", "cluster.device", "cluster.backend", "cluster.threads", "cluster.shared_memory"),
        "cluster.share_gpu",
    ]
)
"""Options that the workload, the hardware, the key of a row or `_chosen` state."""
NEITHER = frozenset(
    [
        *("sweep", "repeat", "repeats", "trainer.seed"),
        # Every run times one step; which one does not matter.
        "trainer.trace",
        # What is kept of checkpoints, and the one after the last epoch. How often they are made does matter.
        *("trainer.checkpoint.keep", "trainer.checkpoint.best", "trainer.checkpoint.final"),
        # Predictions and searches read the description of the cluster. A searched plan is part of the key.
        *("cluster.timeout_s", "cluster.file", "cluster.cache"),
    ]
)
"""Options that change neither what a run learns nor how fast it is, but seeds, which repetitions have
of their own."""
NEITHER_GROUPS = ("strategy.", "tracker.", "cluster.hardware")
"""Groups of such options. Those of the strategy are in its label."""
TAKEN = ("strategy", "scheme", "workers", "threads", "hosts", "network", "epochs", "speedup", "efficiency")
"""Headings of other columns."""
_ABSENT = object()
SPEED_NEUTRAL = frozenset(
    [
        *("trainer.lr", "trainer.schedule", "trainer.step_epochs", "trainer.gamma", "trainer.epochs"),
        *("trainer.lr_scaling", "trainer.base_batch_size"),
        *("model.init", "data.val_images", "resume"),
    ]
)
"""Settings that change what a run learns and not how fast it is."""
SPEED_ZERO = frozenset(["trainer.momentum", "trainer.weight_decay", "model.dropout"])
"""Settings whose value changes no speed, but whether they are 0 does."""
OF_SEVERAL = frozenset(["backend", "cores", "interface", "share_gpu", "transport", "cluster.flows"])
"""Settings without effect on one worker."""


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return options with dotted names for those of mappings; lists are JSON."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = json.dumps(value) if isinstance(value, (list, tuple)) else value
    return found


def settings_of(record: Record) -> Settings:
    """Return the settings that separate a run from others."""
    options = flat(record.config)
    chosen = _chosen(record, options)
    left_out = set(NEITHER | STATED)
    left_out |= set() if len(record.hosts) > 1 else {"cluster.flows"}
    # A run that continues from its own checkpoints is the same training as one without interruption.
    left_out |= {"resume"} if options.get("resume") in (AUTO, NEVER) else set()
    kept = [
        (name, value)
        for name, value in options.items()
        if name not in left_out and not name.startswith(NEITHER_GROUPS)
    ]
    return (*kept, *((name, value) for name, value in chosen.items() if value is not None))


def _chosen(record: Record, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that the system chose for several workers, None where there is none."""
    if record.workers == 1:
        return {}
    several = len(record.hosts) > 1
    interfaces = dict.fromkeys(host.interface for host in record.hosts if host.interface)
    cores = [host.cores for host in record.hosts if host.cores is not None]
    return {
        "backend": record.backend,
        "share_gpu": record.shares_gpu or None,
        "transport": record.transport or _transport(record, options),
        "interface": ", ".join(interfaces) or None if several else None,
        "cores": min(cores, default=None) if record.device == "cpu" else None,
    }


def _transport(record: Record, options: Mapping[str, Any]) -> str | None:
    """Return how the workers of one host passed messages in a record that does not state it."""
    shared = options.get("cluster.shared_memory")
    neighbours = record.workers > max(1, len(record.hosts))
    if shared is None or not neighbours or record.device != "cpu" or record.plan is None:
        return None
    return SHARED_MEMORY if shared else LOOPBACK


def speed_settings(settings: Settings) -> Settings:
    """Return the settings that a run must share with its baseline: those that change the speed of one
    worker."""
    return tuple(
        (name, value != 0 if name in SPEED_ZERO else value)
        for name, value in settings
        if name not in SPEED_NEUTRAL and name not in OF_SEVERAL
    )


def varying(every: Iterable[Settings]) -> list[str]:
    """Return the names of settings that have several values, or are absent from some.

    Settings without effect on one worker count only where they are present.
    """
    found = [dict(settings) for settings in every]
    names = dict.fromkeys(name for settings in found for name in settings)
    return [name for name in names if _varies(name, found)]


def _varies(name: str, every: Iterable[Mapping[str, Any]]) -> bool:
    values = {settings.get(name, _ABSENT) for settings in every}
    return len(values - {_ABSENT} if name in OF_SEVERAL else values) > 1


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Return the heading of each setting: its name without the group, unless another column has it
    too."""
    names = list(names)
    without = [_without_group(name) for name in names]
    return {
        name: short if without.count(short) == 1 and short not in TAKEN else name
        for name, short in zip(names, without, strict=True)
    }


def known_headings(options: Iterable[str]) -> set[str]:
    """Return every heading that a setting can have: what the system chose, and those among `options`."""
    kept = [name for name in options if name not in NEITHER | STATED and not name.startswith(NEITHER_GROUPS)]
    return {*OF_SEVERAL, *kept, *map(_without_group, kept)}


def _without_group(name: str) -> str:
    return name.partition(".")[2] or name


def shown(value: Any) -> str:
    """Return the value of a setting as Hydra overrides have it."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def words(settings: Iterable[tuple[str, Any]]) -> str:
    """Return settings as overrides: `lr=0.01 compile=true`."""
    return " ".join(f"{name}={shown(value)}" for name, value in settings)
