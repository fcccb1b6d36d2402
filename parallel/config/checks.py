"""Validation of user input, and the format of its error messages."""

from __future__ import annotations

from collections.abc import Sequence


def require(ok: bool, name: str, value: object, rule: str) -> None:
    """Unless `ok`, raise `ValueError` with a sentence that names the field, the value and the
    rule."""
    if not ok:
        raise ValueError(f"{name}={value} {rule}")


def require_one_of(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise `ValueError` unless `value` is one of `choices`."""
    require(value in choices, name, value, f"is not known; it must be one of {', '.join(choices)}")


def one_line(error: BaseException) -> str:
    """Return the message of an error as one line, for the console."""
    return " ".join(str(error).split())
