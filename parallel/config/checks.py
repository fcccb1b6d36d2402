"""Validation of user input, and the format of its error messages."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence

LONGEST = 1000
"""Maximum length of a value in a message."""
MOST_DIGITS = 1000
"""Digits of a number in a file; conversion takes time with their square."""
NESTING = 32
"""Maximum depth of lists and mappings in a file; those of the project have at most 8."""

# Bounds of numbers that several dataclasses share: far above every use, and small enough that
# nothing computed from them overflows.
MOST_WORKERS = 2**16
MOST_THREADS = 1024
"""Threads of a process. At some 10,000 the OpenMP library cannot start them and ends the process,
at 100,000 with a segmentation fault."""
MOST_SAMPLES = 10**7
"""Samples of a batch."""
MOST_IMAGES = 10**10
MOST_CLASSES = 10**6
MOST_PIXELS = 2**15
"""Side of an image."""
MOST_STEPS = 10**6
"""Epochs, steps, repetitions."""
MOST_MICRO_BATCHES = 4096
MOST_BYTES = 2**63 - 1
MOST_SECONDS = 10**6
"""Time limits and times of single operations; 12 days."""
SEEDS = 2**32


def require(ok: bool, name: str, value: object, rule: str) -> None:
    """Unless `ok`, raise `ValueError` with a sentence that names the field, the value and the
    rule."""
    if not ok:
        raise ValueError(f"{name}={shortened(_text(value))} {rule}")


def require_one_of(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise `ValueError` unless `value` is one of `choices`."""
    require(value in choices, name, value, f"is not known; it must be one of {', '.join(choices)}")


def require_number(name: str, value: float | None, low: float, high: float) -> None:
    """Raise `ValueError` unless `value` is from `low` to `high`; NaN never is.

    None, an option that is not set, is accepted.
    """
    if value is not None and not low <= value <= high:
        require(False, name, value, f"must be at least {low:,} and at most {high:,}")


def require_positive(name: str, value: float | None, high: float) -> None:
    """Raise `ValueError` unless `value` is above 0 and at most `high`; NaN never is.

    None, an option that is not set, is accepted.
    """
    if value is not None and not 0 < value <= high:
        require(False, name, value, f"must be positive and at most {high:,}")


def require_plain(name: str, value: object) -> None:
    """Raise `ValueError` unless all numbers in lists and mappings are finite and have at most 64
    bits, and the nesting is at most `NESTING`."""
    if not _is_plain(value, NESTING):
        _require_plain(name, value, NESTING)  # raises with the path to what is not


def _is_plain(value: object, levels: int) -> bool:
    if isinstance(value, (dict, list, tuple)):
        inner = value.values() if isinstance(value, dict) else value
        return levels > 0 and all(_is_plain(each, levels - 1) for each in inner)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str) or (isinstance(value, int) and -(2**63) <= value < 2**63)


def _require_plain(name: str, value: object, levels: int) -> None:
    if isinstance(value, (Mapping, list, tuple)):
        if levels == 0:
            raise ValueError(f"{name} is nested more than {NESTING} levels deep")
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            _require_plain(shortened(f"{name}.{key}" if name else str(key)), inner, levels - 1)
    elif isinstance(value, float):
        require(math.isfinite(value), name, value, "must be a finite number")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        require(False, name, value, "must be a whole number of at most 64 bits")


def _text(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > MOST_DIGITS:
        return f"(a number of {value.bit_length()} bits)"  # of which str() may refuse to make digits
    return str(value)


def shortened(text: str) -> str:
    """Return `text`, or its beginning if it is too long for a message."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def printable(text: str) -> str:
    """Return `text` with everything that could control a terminal as an escape: `\\x1b`.

    That is all but printable characters and spaces of any width: control and format characters
    (which can reverse the order of letters), line ends, and code points that no encoding has.
    """
    return "".join(char if _is_printable(char) else _escaped(char) for char in text)


def _is_printable(char: str) -> bool:
    return char.isprintable() or unicodedata.category(char) == "Zs"


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def one_line(error: BaseException) -> str:
    """Return the message of an error as one line, for the console."""
    return printable(" ".join(str(error).split()))


def invalid_input(error: BaseException) -> str | None:
    """Return the line for an error that is invalid input; None: it is another error.

    Invalid input is a `ValueError`, or an `OSError` that names a file.
    """
    if isinstance(error, ValueError):
        return one_line(error)
    if isinstance(error, OSError) and error.filename is not None:
        return printable(f"{error.filename}: {error.strerror}")
    return None
