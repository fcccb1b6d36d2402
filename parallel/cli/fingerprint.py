"""Fingerprints of the workers of a run, which must be equal: code, versions, configuration.

Every worker sends its fingerprint to worker 0, which names the first worker that differs from it and
what differs. Two hosts with another version of one file would otherwise wait for messages that the
other never sends, or train on different numbers without a word.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import parallel
from parallel.config import Config, printable
from parallel.config.documents import from_json
from parallel.config.typed import structure
from parallel.runtime.communication.interface import Endpoint, refuse_endpoints
from parallel.runtime.failure.host_names import describe_host, host_name, refuse_problems

OWN_SETTINGS = (
    *("cluster.threads", "cluster.file", "cluster.cache"),
    *("data.root", "data.cache", "data.cache_limit_gb", "data.decoders", "tracker"),
)
"""Settings that may differ between hosts: their cores and disks, and what only worker 0 uses."""
PACKAGES = ("torch", "numpy")
NAMED = 3
"""Differences that a message names."""


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """Code, versions and configuration of one worker."""

    host: str
    files: Mapping[str, str]
    """Hash of each file of the package, by path."""
    versions: Mapping[str, str]
    """Versions of Python and of the packages that compute."""
    settings: Mapping[str, Any]
    """Values of the configuration by key, without `OWN_SETTINGS`."""
    problem: str = ""
    """Why this worker cannot take part."""
    endpoint: Endpoint | None = None
    """Where it listens for messages; None: it has a problem."""

    def encode(self) -> str:
        """Return the fingerprint as JSON."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def decode(text: str) -> Fingerprint:
        """Read JSON from another worker. Raises `ValueError`."""
        return structure(Fingerprint, from_json(text.encode()), "fingerprint")


def fingerprint(config: Config, problem: str = "", endpoint: Endpoint | None = None) -> Fingerprint:
    """Return the fingerprint of this worker."""
    return Fingerprint(host_name(), _files(), _versions(), dict(_settings(config)), problem, endpoint)


def _files() -> dict[str, str]:
    root = Path(parallel.__file__).parent
    return {
        f"parallel/{path.relative_to(root).as_posix()}": hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in sorted(root.rglob("*.py"))
    }


def _versions() -> dict[str, str]:
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, **{name: metadata.version(name) for name in PACKAGES}}


def _settings(config: Config) -> Iterator[tuple[str, Any]]:
    def flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            name = f"{prefix}{key}"
            if name in OWN_SETTINGS:
                continue
            if isinstance(value, dict) and value:
                yield from flat(f"{name}.", value)
            else:
                yield name, value

    # As JSON has them: tuples are lists.
    return flat("", json.loads(json.dumps(dataclasses.asdict(config))))


def refuse_differences(fingerprints: Sequence[Fingerprint]) -> None:
    """Raise `ValueError` if a worker has a problem, differs from worker 0, or listens where others
    cannot reach it; `fingerprints` are by rank."""
    refuse_problems([(own.host, own.problem) for own in fingerprints])
    first = fingerprints[0]
    for other in fingerprints[1:]:
        found = _difference(first, other)
        if found is not None:
            what, details = found
            alike = [
                rank
                for rank, own in enumerate(fingerprints)
                if own.host == other.host and _difference(first, own) == found
            ]
            raise ValueError(
                f"{describe_host(other.host, alike)} has other {what} than "
                f"{describe_host(first.host, [0])}: {details}"
            )
    refuse_endpoints([(own.host, own.endpoint) for own in fingerprints if own.endpoint is not None])


def _difference(first: Fingerprint, other: Fingerprint) -> tuple[str, str] | None:
    """Return what differs and where, or None: `code`, `parallel/plan.py differs`."""
    for kind in ("files", "versions", "settings"):
        ours: Mapping[str, Any] = getattr(first, kind)
        theirs: Mapping[str, Any] = getattr(other, kind)
        names = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
        if not names:
            continue
        if kind == "files":
            said = [_said_of_file(name, name in ours, name in theirs) for name in names[:NAMED]]
        else:
            said = [f"{name} is {theirs.get(name)} there and {ours.get(name)} here" for name in names[:NAMED]]
        more = [f"and {len(names) - NAMED} more"] if len(names) > NAMED else []
        word = {"files": "code", "versions": "versions", "settings": "settings"}[kind]
        return word, printable(", ".join([*said, *more]))
    return None


def _said_of_file(name: str, here: bool, there: bool) -> str:
    if here and there:
        return f"{name} differs"
    return f"{name} is missing {'there' if here else 'here'}"
