"""Parse the values of commands' own keys: words, numbers, seconds, and prefixed keys as a
dataclass."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

from parallel.config import require
from parallel.config.typed import structure_text

T = TypeVar("T")


def words(name: str, value: str) -> list[str]:
    """Return the distinct words of `a,b,c` or `[a,b,c]`."""
    found = [word.strip() for word in value.strip("[]").split(",")]
    require(all(found), name, value, "must be words separated by commas")
    return list(dict.fromkeys(found))


def whole_numbers(name: str, value: str, most: int) -> list[int]:
    """Return the distinct whole numbers of `1,2,4`, from 1 to `most`, sorted."""
    return sorted({whole_number(name, word, most) for word in words(name, value)})


def whole_number(name: str, value: str, most: int) -> int:
    """Return a whole number from 1 to `most`."""
    ok = re.fullmatch("[0-9]{1,18}", value) is not None and 1 <= int(value) <= most
    require(ok, name, value, f"must be a whole number of at least 1 and at most {most:,}")
    return int(value)


def positive_seconds(name: str, value: str) -> float:
    """Return a positive number of seconds, at most a billion."""
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    require(0 < seconds <= 1e9, name, value, "must be a positive number of seconds, at most 1,000,000,000")
    return seconds


def prefixed_options(cls: type[T], prefix: str, arguments: Sequence[str]) -> tuple[T, list[str]]:
    """Return the arguments of the form `prefix.key=value` as a `cls`, and the other arguments."""
    own = [argument.removeprefix(f"{prefix}.") for argument in arguments if argument.startswith(f"{prefix}.")]
    for argument in own:
        require("=" in argument, prefix, argument, f"must have a value: {prefix}.{argument}=value")
    options = structure_text(cls, dict(argument.split("=", 1) for argument in own), prefix)
    return options, [argument for argument in arguments if not argument.startswith(f"{prefix}.")]
