"""Read mappings whose numbers have units and sources.

Errors name the field, the value and the rule.

A number is `12 GB/s`, or with its source `{value: 12 GB/s, source: data sheet}`. Counts are whole
numbers.

`parallel.config.typed` reads plain values into dataclasses. It does not fit here: nearly every
field is text with a certain kind of unit and an optional source, so each would still be converted
one by one, after a second set of dataclasses had checked that it is text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from parallel.cluster.units import quantity, text
from parallel.config import printable, require
from parallel.config.checks import shortened


@dataclass(frozen=True)
class Fields:
    """A mapping of a cluster file. `sources` collects the sources of its numbers by name."""

    data: Mapping[str, Any]
    where: str
    sources: dict[str, str] = field(default_factory=dict)

    def name(self, key: str) -> str:
        """Return the path of a key."""
        return f"{self.where}.{key}" if self.where else key

    def known(self, *keys: str) -> None:
        """Raise `ValueError` for a key that is not one of these."""
        for key in self.data:
            require(
                key in keys,
                self.where or "cluster",
                key,
                f"is not a key here; the keys are {', '.join(keys)}",
            )

    def number(self, key: str, kind: str) -> float:
        """Return the number at `key` in base units, and note its source."""
        name, entry = self.name(key), self.data.get(key)
        if isinstance(entry, Mapping):
            for inner in entry:
                require(
                    inner in ("value", "source"), name, inner, "is not a key here; the keys are value, source"
                )
            self.source(key, entry)
            entry = entry.get("value")
        return quantity(entry, kind, name)

    def source(self, key: str, entry: Mapping[str, Any]) -> None:
        """Note the source in the mapping of a number, if it has one."""
        if entry.get("source") is not None:
            self.sources[self.name(key)] = printable(" ".join(str(entry["source"]).split()))

    def count(self, key: str) -> int:
        """Return the whole number at `key`, at least 1."""
        value = self.data.get(key)
        require(value is not None, self.name(key), value, "is missing; it must be a whole number")
        if type(value) is not int or value < 1:
            raise ValueError(f"{self.name(key)}={shortened(str(value))} must be a whole number of at least 1")
        return value

    def flag(self, key: str) -> bool:
        """Return the truth value at `key`."""
        value = self.data.get(key)
        if type(value) is not bool:
            raise ValueError(f"{self.name(key)}={shortened(str(value))} must be true or false")
        return value

    def inner(self, key: str) -> Fields:
        """Return the mapping at `key`."""
        value = self.data.get(key)
        require(value is not None, self.name(key), value, "is missing; it must be a mapping")
        if not isinstance(value, Mapping):
            raise ValueError(f"{self.name(key)}={shortened(str(value))} must be a mapping")
        return Fields(value, self.name(key), self.sources)


def written(value: float, kind: str, name: str, sources: Mapping[str, str]) -> Any:
    """Return a number in the form that `Fields.number` reads."""
    form = text(value, kind)
    return {"value": form, "source": sources[name]} if name in sources else form
