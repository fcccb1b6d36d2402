"""Numbers with units in cluster files: `18.7 TFLOP/s`, `12.1 GB/s`, `5 us`, `16 GB`, `45 %`.

Decimal arithmetic keeps numbers exact: `quantity(text(x, kind), kind, …) == x` for every float x.
"""

from __future__ import annotations

import re
from decimal import Decimal

from parallel.config import require
from parallel.config.checks import shortened

_BYTES = {
    "B": Decimal(1),
    "kB": Decimal(10**3),
    "MB": Decimal(10**6),
    "GB": Decimal(10**9),
    "TB": Decimal(10**12),
    "KiB": Decimal(2**10),
    "MiB": Decimal(2**20),
    "GiB": Decimal(2**30),
}
_SECONDS = {"s": Decimal(1), "ms": Decimal("1e-3"), "us": Decimal("1e-6"), "ns": Decimal("1e-9")}

UNITS: dict[str, dict[str, Decimal]] = {
    "time": _SECONDS,
    "time per image": {f"{unit}/image": scale for unit, scale in _SECONDS.items()},
    "size": _BYTES,
    "bandwidth": {
        **{f"{unit}/s": scale for unit, scale in _BYTES.items()},
        **{f"{unit}bit/s": scale / 8 for unit, scale in (("M", Decimal(10**6)), ("G", Decimal(10**9)))},
    },
    "speed": {
        f"{prefix}FLOP/s": Decimal(10**power)
        for prefix, power in (("", 0), ("M", 6), ("G", 9), ("T", 12), ("P", 15))
    },
    "share": {"%": Decimal("0.01")},
}
"""Units by kind of quantity, with their size in seconds, bytes, FLOP/s or one."""
EXAMPLES = {
    "time": "5 us",
    "time per image": "2.8 ms/image",
    "size": "16 GB",
    "bandwidth": "12.1 GB/s",
    "speed": "18.7 TFLOP/s",
    "share": "45 %",
}
_WRITTEN = {
    "time": ("s", "ms", "us"),
    "time per image": ("s/image", "ms/image", "us/image"),
    "size": ("GB", "MB", "kB", "B"),
    "bandwidth": ("GB/s", "MB/s", "kB/s", "B/s"),
    "speed": ("TFLOP/s", "GFLOP/s", "MFLOP/s", "FLOP/s"),
    "share": ("%",),
}
"""Units used for writing: the first in which the number is at least 1, or the last."""
_NUMBER = re.compile(r"([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?)\s*(\S*)")
LONGEST = 100
"""Maximum length of a number with its unit; a float has at most 17 digits."""
MOST_COUNT = 10**18
"""Bound of elements, multiply-adds and samples."""
MOST_RATE = 1e30
"""Bound of bytes, bytes per second and FLOP/s."""


def quantity(value: object, kind: str, name: str) -> float:
    """Return the number in `value` in base units.

    Raises `ValueError` with the field `name` if it is not a number of this kind.
    """
    rule = f"must be a {kind} such as {EXAMPLES[kind]}"
    require(value is not None, name, value, f"is missing; it {rule}")
    written = str(value).strip()
    match = _NUMBER.fullmatch(written) if len(written) <= LONGEST else None
    if match is None or isinstance(value, bool):
        raise ValueError(f"{name}={shortened(written)} is not a number with a unit; it {rule}")
    number, unit = match.groups()
    unit = unit.replace("µ", "u").replace("μ", "u")
    require(bool(unit), name, value, f"has no unit; it {rule}")
    require(unit in UNITS[kind], name, value, f"has the unit {unit}; its units are {', '.join(UNITS[kind])}")
    require(not number.startswith("-"), name, value, "must not be negative")
    result = float(Decimal(number) * UNITS[kind][unit])
    require(result <= MOST_RATE, name, value, "is too large")
    return result


def text(value: float, kind: str) -> str:
    """Return `value`, given in base units, with a readable unit, without rounding."""
    exact = Decimal(repr(float(value)))
    unit = next(
        (u for u in _WRITTEN[kind] if exact >= UNITS[kind][u]), _WRITTEN[kind][0 if exact == 0 else -1]
    )
    return f"{_plain(exact / UNITS[kind][unit])} {unit}"


def _plain(number: Decimal) -> str:
    """Return the number without an exponent unless it is very large or small."""
    plain = number == 0 or -6 <= number.adjusted() <= 15
    return f"{number.normalize():f}" if plain else str(number.normalize())
