"""Measured times in a cluster file: ops by key and pass, other work by number of elements.

measured:
  memory_format: channels_last
  source: means of …
  ops:
    fp32:
      Linear bias=True:
        128x9216 > 128x2048, 18874368 parameters, 2415919104 multiply-adds:
          forward: 41 ms [40.5 ms, 42 ms] of 12     mean [quartiles] of number of samples
          backward: 83 ms [82 ms, 85 ms] of 12      gradients of inputs and parameters
          parameters: 41 ms [40 ms, 43 ms] of 12    gradients of parameters alone: first ops
  update: {fp32: {1000 elements: 20 us, …}}         an SGD step
  add: …                                            received elements added to others
  copy: …                                           packing before a message
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from parallel.cluster.fields import Fields
from parallel.cluster.op_key import OpKey
from parallel.cluster.units import MOST_COUNT, quantity, text
from parallel.config import PRECISIONS, printable, require, require_number, require_one_of, require_positive
from parallel.config.checks import MOST_SECONDS, shortened

FORWARD, BACKWARD, PARAMETERS = "forward", "backward", "parameters"
PASSES = (FORWARD, BACKWARD, PARAMETERS)
MEMORY_FORMATS = ("channels_last", "contiguous")
_TIMING = re.compile(r"([^\[\],]+) \[([^\[\],]+), ([^\[\],]+)\] of ([0-9]{1,18})")
_COUNT = re.compile(r"([0-9]{1,18}) elements")
_OLD_COUNT = re.compile(r"\d+ numbers")


@dataclass(frozen=True)
class Timing:
    """A mean time with quartiles."""

    mean_s: float
    """Mean of the middle four fifths. Such means add up to the time of a step; medians do not where
    two workers take turns on a core."""
    low_s: float
    """First quartile."""
    high_s: float
    """Third quartile."""
    count: int

    def __post_init__(self) -> None:
        require_positive("mean", self.mean_s, MOST_SECONDS)
        for name, value in (("first quartile", self.low_s), ("third quartile", self.high_s)):
            require_number(name, value, 0, MOST_SECONDS)
        require_number("count", self.count, 1, MOST_COUNT)
        require(
            self.low_s <= self.high_s,
            "first quartile",
            self.low_s,
            f"must not be above the third, {self.high_s}",
        )

    def __str__(self) -> str:
        return (
            f"{text(self.mean_s, 'time')} [{text(self.low_s, 'time')}, {text(self.high_s, 'time')}] "
            f"of {self.count}"
        )

    @staticmethod
    def parse(value: object, name: str) -> Timing:
        """Return the timing in `value`; `name` is the field, for errors."""
        match = _TIMING.fullmatch(str(value))
        if match is None:
            raise ValueError(
                f"{name}={shortened(str(value))} must be a time with its quartiles such as `41 ms [40 ms, 42 ms] of 12`"
            )
        mean, low, high = (quantity(part, "time", name) for part in match.groups()[:3])
        return Timing(mean, low, high, int(match[4]))


@dataclass(frozen=True)
class Curve:
    """Seconds by number of elements: linear between points, then proportional.

    Before the first point the time is constant.
    """

    points: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        require(len(self.points) > 0, "points", self.points, "must not be empty")
        for count, seconds in self.points:
            require_number("points", count, 1, MOST_COUNT)
            require_positive("points", seconds, MOST_SECONDS)
        for (a, s), (b, t) in itertools.pairwise(self.points):
            require(a < b and s <= t, "points", f"{a}: {s:g} s, {b}: {t:g} s", "must rise in both")

    def seconds(self, count: int) -> float:
        """Return the seconds for this number of elements; 0 for none."""
        if count <= 0:
            return 0.0
        i = bisect.bisect_left(self.points, count, key=lambda point: point[0])
        if i == 0:
            return self.points[0][1]
        (a, s) = self.points[i - 1]
        if i == len(self.points):
            return s * count / a
        b, t = self.points[i]
        share = (count - a) / (b - a)
        return s + (t - s) * share


Ops = Mapping[tuple[OpKey, str], Timing]
"""Timings by op key and pass."""


@dataclass(frozen=True)
class Table:
    """All compute times that a calibration has measured."""

    ops: Mapping[str, Ops] = field(hash=False)
    """Timings by precision."""
    update: Mapping[str, Curve] = field(hash=False)
    add: Mapping[str, Curve] = field(hash=False)
    copy: Mapping[str, Curve] = field(hash=False)
    memory_format: str = "channels_last"
    source: str = "measured"

    def __post_init__(self) -> None:
        require_one_of("measured.memory_format", self.memory_format, MEMORY_FORMATS)
        require(len(self.ops) > 0, "measured.ops", dict(self.ops), "must have a precision")
        for precision, ops in self.ops.items():
            require_one_of("measured.ops", precision, PRECISIONS)
            require(len(ops) > 0, f"measured.ops.{precision}", dict(ops), "must have an op")
            for name in ("update", "add", "copy"):
                require(
                    precision in getattr(self, name),
                    f"measured.{name}",
                    list(getattr(self, name)),
                    f"must have the precision {precision}, as measured.ops has",
                )


def read_table(fields: Fields) -> Table:
    """Return the table in a mapping of a cluster file."""
    fields.known("memory_format", "source", "ops", "update", "add", "copy")
    ops: dict[str, dict[tuple[OpKey, str], Timing]] = {}
    precisions = fields.inner("ops")
    for precision in precisions.data:
        heads, found = precisions.inner(precision), ops.setdefault(precision, {})
        for head in heads.data:
            entries = heads.inner(head)
            for shapes in entries.data:
                timings, key = entries.inner(shapes), OpKey.parse(str(head), str(shapes))
                for name, value in timings.data.items():
                    require_one_of(timings.where, name, PASSES)
                    found[key, name] = Timing.parse(value, timings.name(name))
    return Table(
        ops,
        update=_read_curves(fields.inner("update")),
        add=_read_curves(fields.inner("add")),
        copy=_read_curves(fields.inner("copy")),
        memory_format=str(fields.data.get("memory_format")),
        source=printable(str(fields.data.get("source"))),
    )


def write_table(table: Table) -> dict[str, Any]:
    """Return the mapping that `read_table` reads."""
    ops: dict[str, Any] = {}
    for precision, entries in table.ops.items():
        for (key, name), timing in entries.items():
            shapes = ops.setdefault(precision, {}).setdefault(key.head, {})
            shapes.setdefault(key.shapes, {})[name] = str(timing)
    return {
        "memory_format": table.memory_format,
        "source": table.source,
        "ops": ops,
        **{name: _write_curves(getattr(table, name)) for name in ("update", "add", "copy")},
    }


def _read_curves(fields: Fields) -> dict[str, Curve]:
    curves = {}
    for precision in fields.data:
        points, inner = [], fields.inner(precision)
        for count, seconds in inner.data.items():
            match = _COUNT.fullmatch(str(count))
            require(
                _OLD_COUNT.fullmatch(str(count)) is None,
                inner.where,
                count,
                "was written by an earlier version, which counted `numbers` instead of `elements`: "
                "calibrate again with calibrate.fresh=true",
            )
            require(match is not None, inner.where, count, "must be a count such as `4096 elements`")
            points.append((int(str(count).split()[0]), quantity(seconds, "time", f"{inner.where}.{count}")))
        curves[precision] = Curve(tuple(points))
    return curves


def _write_curves(curves: Mapping[str, Curve]) -> dict[str, Any]:
    return {
        precision: {f"{count} elements": text(seconds, "time") for count, seconds in curve.points}
        for precision, curve in curves.items()
    }
