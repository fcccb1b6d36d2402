"""Parse the values of commands' own keys: words, numbers, seconds, and prefixed keys as a
dataclass."""

from __future__ import annotations

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


def whole_numbers(name: str, value: str) -> list[int]:
    """Return the distinct positive whole numbers of `1,2,4`, sorted."""
    found = words(name, value)
    for word in found:
        require(word.isdecimal() and int(word) >= 1, name, word, "must be a whole number of at least 1")
    return sorted({int(word) for word in found})


def positive_seconds(name: str, value: str) -> float:
    """Return a positive finite number of seconds."""
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    require(0 < seconds < float("inf"), name, value, "must be a positive number of seconds")
    return seconds


def prefixed_options(cls: type[T], prefix: str, arguments: Sequence[str]) -> tuple[T, list[str]]:
    """Return the arguments of the form `prefix.key=value` as a `cls`, and the other arguments."""
    own = [argument.removeprefix(f"{prefix}.") for argument in arguments if argument.startswith(f"{prefix}.")]
    for argument in own:
        require("=" in argument, prefix, argument, f"must have a value: {prefix}.{argument}=value")
    options = structure_text(cls, dict(argument.split("=", 1) for argument in own), prefix)
    return options, [argument for argument in arguments if not argument.startswith(f"{prefix}.")]
