"""Numbers as tables and reports show them."""

from __future__ import annotations


def number(value: float | None, form: str = ".2f", unit: str = "") -> str:
    """Return a formatted value, or "-" for None."""
    return "-" if value is None else f"{value:{form}}{unit}"


def count(value: int, noun: str) -> str:
    """Return a count with its noun in the singular or plural: "1 run", "2 runs"."""
    return f"{value:,} {noun}{'s' * (value != 1)}"


def seconds(value: float) -> str:
    """Return seconds with two decimals, below one second with four."""
    return f"{value:.2f}" if value >= 1 else f"{value:.4f}"


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


def percent(value: float | None, digits: int = 1) -> str:
    """Return a fraction as a percentage, or "-" for None."""
    return number(None if value is None else 100 * value, f".{digits}f", " %")


def signed_percent(value: float) -> str:
    """Return a fraction as a percentage with its sign."""
    return f"{100 * value:+.1f} %"
