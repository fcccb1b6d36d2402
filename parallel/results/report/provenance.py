"""Provenance of a run in the report: what ran, where, with which versions and configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from parallel.results.formatting import count, listed, rate, size
from parallel.results.hosts import Host
from parallel.results.records import Record
from parallel.results.result import Result, workers_and_threads


@dataclass(frozen=True)
class Provenance:
    """One run, as the report lists it."""

    label: str
    about: str
    facts: Sequence[tuple[str, str]]
    texts: Sequence[tuple[str, str]]
    """Plan and configuration, with their titles."""


def provenance(result: Result, record: Record) -> Provenance:
    """Return everything known about a run; unknown facts are left out."""
    facts = [
        (name, _plain(value)) for name, value in _facts(result, record).items() if value not in (None, "", [])
    ]
    config = "".join(
        f"{group}.{name}={_plain(value)}\n"
        for group, values in record.config.items()
        if isinstance(values, dict)
        for name, value in values.items()
        if value is not None
    )
    texts = [(title, text) for title, text in (("Plan", record.plan), ("Configuration", config)) if text]
    about = f"{workers_and_threads(result)}, {count(len(record.epochs), 'epoch')}"
    return Provenance(result.label, about, facts, texts)


def _facts(result: Result, record: Record) -> dict[str, Any]:
    environment = dict(record.environment)
    commit, dirty = environment.pop("git_commit", None), environment.pop("git_dirty", None)
    variables, memory = environment.pop("variables", None) or {}, environment.pop("memory_bytes", None)
    cuda = environment.pop("cuda", None) or {}
    return {
        "run": record.name,
        "sweep": record.sweep,
        "record": record.directory,
        "command": record.command,
        "started": record.started,
        "finished": record.finished,
        "commit": commit and f"{commit}{' with uncommitted changes' if dirty else ''}",
        "device": record.device,
        "backend": record.backend,
        "workers": record.workers,
        "threads per worker": record.threads,
        "hosts": "; ".join(map(_host, record.hosts)),
        "restarts": record.restarts and f"{record.restarts} ({record.lost_s:.1f} s lost)",
        "attempts": "; ".join(
            f"from step {a.step} on {a.label}, {count(a.workers, 'worker')}" for a in record.attempts[1:]
        ),
        "untimed warm-up steps": record.warmup_steps,
        "parameters": record.parameters and f"{record.parameters:,} ({size(record.parameter_bytes)})",
        "forward FLOPs per image": record.forward_flops and f"{record.forward_flops:,}",
        "peak memory of a worker": result.peak_memory_bytes and size(result.peak_memory_bytes),
        **{name.replace("_", " "): value for name, value in environment.items()},
        **{f"cuda {name}": value for name, value in cuda.items()},
        "environment variables": ", ".join(f"{name}={value}" for name, value in variables.items()),
        "memory": memory and size(memory),
    }


def _host(host: Host) -> str:
    """Return a host in one line, without what is unknown."""
    parts = (
        f"{host.name}: {listed('worker', host.workers)}",
        host.threads and f"{count(host.threads, 'thread')} each",
        host.cores and count(host.cores, "core"),
        ", ".join(host.gpus),
        host.memory_bytes and size(host.memory_bytes),
        host.interface,
        host.bandwidth and f"{rate(host.bandwidth)} to the next host",
    )
    return ", ".join(part for part in parts if part)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={_plain(inner)}" for key, inner in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list) else str(value)
