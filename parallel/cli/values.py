"""Values of commands' own keys: words, whole numbers and seconds."""

from __future__ import annotations

from parallel.config import require


def words(name: str, value: str) -> list[str]:
    """Return the distinct words of `a,b,c` or `[a,b,c]`."""
    found = [word.strip() for word in value.strip("[]").split(",")]
    require(all(found), name, value, "must be words with commas between them")
    return list(dict.fromkeys(found))


def whole_numbers(name: str, value: str) -> list[int]:
    """Return the distinct positive whole numbers of `1,2,4`, sorted."""
    found = words(name, value)
    for word in found:
        require(word.isdecimal() and int(word) >= 1, name, word, "must be a whole number, at least 1")
    return sorted({int(word) for word in found})


def positive_seconds(name: str, value: str) -> float:
    """Return a positive finite number of seconds."""
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    require(0 < seconds < float("inf"), name, value, "must be a positive number of seconds")
    return seconds
