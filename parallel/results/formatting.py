"""Numbers as tables and reports show them."""

from __future__ import annotations

from collections.abc import Sequence


def number(value: float | None, form: str = ".2f", unit: str = "") -> str:
    """Return a formatted value, or "-" for None."""
    return "-" if value is None else f"{value:{form}}{unit}"


def count(value: int, noun: str) -> str:
    """Return a count with its noun in the singular or plural: "1 run", "2 runs"."""
    return f"{value:,} {noun}{'s' * (value != 1)}"


def listed(noun: str, numbers: Sequence[int]) -> str:
    """Return numbers with their noun in the singular or plural: "worker 2", "workers 0, 1"."""
    return f"{noun}{'s' * (len(numbers) != 1)} {', '.join(map(str, numbers))}"


def seconds(value: float) -> str:
    """Return seconds with two decimals, below one second with four."""
    return f"{value:.2f}" if value >= 1 else f"{value:.4f}"


def brief_seconds(value: float) -> str:
    """Return seconds with a unit for sentences: `1.70 s`, below one second `828 ms`."""
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def duration(value: float | None) -> str:
    """Return seconds as seconds, minutes or hours, or "-" for None."""
    if value is None:
        return "-"
    if value < 60:
        return f"{value:.1f} s"
    return f"{value / 60:.2f} min" if value < 3600 else f"{value / 3600:,.2f} h"


def milliseconds(value: float) -> str:
    """Return seconds as milliseconds with one decimal."""
    return f"{1e3 * value:,.1f}"


def size(value: float | None) -> str:
    """Return bytes in decimal units, as networks count them, or "-" for None."""
    if value is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def rate(value: float | None) -> str:
    """Return bytes per second as bits per second, as networks are rated, or "-" for None."""
    if value is None:
        return "-"
    value *= 8
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} Gbit/s"


def percent(value: float | None, digits: int = 1) -> str:
    """Return a fraction as a percentage, or "-" for None."""
    return number(None if value is None else 100 * value, f".{digits}f", " %")


def signed_percent(value: float) -> str:
    """Return a fraction as a percentage with its sign."""
    return f"{100 * value:+.1f} %"
