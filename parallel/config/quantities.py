"""Quantities with units, as the options of emulated clusters and records of runs in them state them."""

from __future__ import annotations

import re

from parallel.config.checks import require

RATES = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
"""Units of rates in bits per second, as tc writes them."""
DELAYS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
SLOWEST, FASTEST = 1e5, 1e11
"""Bounds of a rate in bits per second."""
LONGEST_DELAY_S = 1.0


def parse_rate(name: str, text: str) -> float:
    """Return the bits per second of `1gbit`, `2.5gbit`, `100mbit` or `500kbit`."""
    rate = _quantity(name, text, RATES, "must be a rate such as 1gbit, 2.5gbit or 100mbit")
    require(SLOWEST <= rate <= FASTEST, name, text, "must be at least 100kbit and at most 100gbit")
    return rate


def parse_delay(name: str, text: str) -> float:
    """Return the seconds of `50us`, `1ms` or `0.1s`."""
    delay = _quantity(name, text, DELAYS, "must be a delay such as 50us, 1ms or 0.1s")
    require(delay <= LONGEST_DELAY_S, name, text, f"must be at most {LONGEST_DELAY_S:g}s")
    return delay


def _quantity(name: str, text: str, units: dict[str, float], rule: str) -> float:
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([a-z]+)", text)
    value = 0.0 if match is None else float(match[1]) * units.get(match[2], 0.0)
    require(value > 0, name, text, rule)
    return value
