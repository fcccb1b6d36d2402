"""Checks of record files beyond types and bounds: that they do not contradict themselves, and that no
text is too long to be shown.

The time of a table and of the page grows with the length of texts, some with its square.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parallel.config import require
from parallel.config.checks import shortened
from parallel.results.records import Record

LONGEST_TEXT = 4096
"""Characters of a name or a value: those of the longest path of Linux."""
LONGEST_COMMAND = 20_000
LONGEST_HOST = 253
"""Characters of a host name, as in the DNS."""
LONG = ("command", "plan")
"""Fields that may be longer. A plan has a line for each op, and the command is cut."""
BROKEN_IMAGES = 0.01
"""Greatest share of images that a data set leaves out because they cannot be decoded."""
STATED = {
    "model": ("model", "name"),
    "variant": ("model", "variant"),
    "image_size": ("model", "image_size"),
    "data": ("data", "name"),
    "num_classes": ("data", "num_classes"),
    "train_images": ("data", "train_images"),
    "batch_size": ("trainer", "batch_size"),
    "precision": ("trainer", "precision"),
}
"""Fields of the workload, and the options that state them, too."""


def cut_texts(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a record file with texts cut that are only shown: command, host names and
    environment variables.

    Raises `ValueError` for others that are too long: they tell rows apart.
    """
    found = dict(values)
    if "command" in found:
        found["command"] = _cut(found["command"], LONGEST_COMMAND)
    if isinstance(environment := found.get("environment"), dict):
        limits = {"host": LONGEST_HOST, "variables": LONGEST_TEXT}
        shown = {name: _cut(environment[name], most) for name, most in limits.items() if name in environment}
        found["environment"] = {**environment, **shown}
    if isinstance(hosts := found.get("hosts"), list):
        found["hosts"] = [
            {**host, "name": _cut(host["name"], LONGEST_HOST)}
            if isinstance(host, dict) and "name" in host
            else host
            for host in hosts
        ]
    for name, value in found.items():
        if name not in LONG:
            _require_short(name, value)
    return found


def require_consistent(record: Record) -> None:
    """Raise `ValueError` unless the workload of a record is that of its configuration, where both state
    a value."""
    for field, (group, option) in STATED.items():
        value = getattr(record.workload, field)
        stated = (record.config.get(group) or {}).get(option)
        if value is not None and stated is not None:
            require(
                _agree(field, value, stated),
                f"workload.{field}",
                value,
                f"must be that of the configuration, {group}.{option}={shortened(str(stated))}",
            )


def _agree(field: str, value: Any, stated: Any) -> bool:
    if field == "data":
        return bool(value == stated or value.startswith(f"{stated} ("))  # other images stand in
    if field == "train_images" and isinstance(stated, (int, float)):
        return (1 - BROKEN_IMAGES) * stated <= value <= stated
    return bool(value == stated)


def _cut(value: Any, longest: int) -> Any:
    """Return a text, or a mapping of texts, with at most `longest` characters and how many it had."""
    if isinstance(value, dict):
        return {name: _cut(inner, longest) for name, inner in value.items()}
    if not isinstance(value, str) or len(value) <= longest:
        return value
    end = f"… ({len(value):,} characters)"
    return value[: longest - len(end)] + end


def _require_short(name: str, value: Any) -> None:
    if isinstance(value, str):
        require(
            len(value) <= LONGEST_TEXT,
            shortened(name),
            value,
            f"must have at most {LONGEST_TEXT:,} characters; it has {len(value):,}",
        )
    elif isinstance(value, dict):
        for key, inner in value.items():
            _require_short(f"a name in {name}", key)
            _require_short(f"{name}.{key}", inner)
    elif isinstance(value, list):
        for inner in value:
            _require_short(name, inner)
