"""Read files of plain values, JSON and YAML, that somebody else may have written.

The message of an error continues a sentence that begins with the file: "not valid YAML: …",
"invalid: …". Both readers reject what a plain value cannot be or must not be here: a number that is not finite or
has more than 64 bits, nesting deeper than `checks.NESTING`, a repeated key, and files of more than
`MOST_FILE_BYTES`. The YAML reader also rejects aliases, with which a file of a kilobyte can stand
for a billion values, and tags. Types and keys are checked by `config.typed`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from parallel.config.checks import MOST_DIGITS, NESTING, one_line, require_plain

MOST_FILE_BYTES = 2**28
"""256 MB. A plan of 65,536 workers has some 10 MB, a calibration less than 1 MB."""


def read_bytes(path: Path) -> bytes:
    """Return the content of a file. Raises `ValueError` that names the file if it cannot be read or
    is too large."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from error
    if len(content) > MOST_FILE_BYTES:
        raise ValueError(f"{path} is too large: it must have at most {MOST_FILE_BYTES:,} bytes")
    return content


def read_text(path: Path) -> str:
    """Return the content of a text file. Raises `ValueError` as `read_bytes` does, and if it is not
    UTF-8."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} can't be read: it is not text in UTF-8") from error


def from_json(content: bytes) -> Any:
    """Return the value that a JSON text describes. Raises `ValueError`."""
    try:
        value = json.loads(
            content, parse_constant=_no_constant, parse_int=_whole_number, object_pairs_hook=_mapping
        )
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"truncated or not JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"nested more than {NESTING} levels deep") from None
    _check(value)
    return value


def from_yaml(text: str) -> Any:
    """Return the value that a YAML text describes. Raises `ValueError`.

    Plain words are numbers, truth values and null only where YAML 1.1 and 1.2 agree; all others are
    text: `on`, `010`, `1e5`, `1:30`, `2026-01-01`. So PyYAML writes every text that has one of these
    forms with quotes.
    """
    try:
        events = (event for event in yaml.parse(text, Loader=_Parser) if not isinstance(event, _FRAME))
        values = [_from_events(event, events, 0) for event in events]
    except yaml.YAMLError as error:
        if "nesting depth" in str(error):  # the parser in C has a limit of its own, and reads ahead
            raise ValueError(f"nested more than {NESTING} levels deep") from None
        raise ValueError(f"not valid YAML: {one_line(error)}") from None
    if len(values) > 1:
        raise ValueError(f"not valid YAML here: {len(values)} documents instead of one")
    value = values[0] if values else None
    _check(value)
    return value


def _check(value: Any) -> None:
    try:
        require_plain("", value)
    except ValueError as error:
        raise ValueError(f"invalid: {error}") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"invalid: {name} is not a number")


def _whole_number(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"invalid: a number of {len(digits)} digits is too long")
    return int(digits)


def _mapping(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    values: dict[Any, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"invalid: {key} is given twice")
        values[key] = value
    return values


_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""PyYAML's parser in C where available: a calibrated cluster file has thousands of lines. Only its
events are used: the loader in C follows nesting until its stack is full, which ends the process."""
_FRAME = (yaml.StreamStartEvent, yaml.StreamEndEvent, yaml.DocumentStartEvent, yaml.DocumentEndEvent)
_PLAIN: tuple[tuple[re.Pattern[str], Callable[[str], Any]], ...] = (
    (re.compile(r"null|Null|NULL|~|"), lambda text: None),
    (re.compile(r"true|True|TRUE"), lambda text: True),
    (re.compile(r"false|False|FALSE"), lambda text: False),
    (re.compile(r"[-+]?(?:0|[1-9][0-9]*)"), _whole_number),
    (re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?"), float),
    (re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"), lambda text: float(text.replace(".", ""))),
)
"""Forms of plain scalars with another meaning than their text."""


def _from_events(event: Any, events: Iterator[Any], levels: int) -> Any:
    """Return the value that begins with `event`, and consume its other events."""
    if event.anchor is not None:
        raise ValueError(f"invalid: the anchor or alias {event.anchor} is not allowed here")
    if event.tag not in (None, "!"):
        raise ValueError(f"invalid: the tag {event.tag} is not allowed here")
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(event)
    if levels >= NESTING:
        raise ValueError(f"nested more than {NESTING} levels deep")
    if isinstance(event, yaml.SequenceStartEvent):
        return list(_until(yaml.SequenceEndEvent, events, levels + 1))
    items = _until(yaml.MappingEndEvent, events, levels + 1)
    return _mapping((_key(key), next(items)) for key in items)


def _until(end: type, events: Iterator[Any], levels: int) -> Iterator[Any]:
    """Yield the values before the event of type `end`."""
    for event in events:
        if isinstance(event, end):
            return
        yield _from_events(event, events, levels)


def _key(key: Any) -> Any:
    if isinstance(key, (list, dict)):
        raise ValueError("invalid: a list or mapping is not allowed as a key; keys are words and numbers")
    return key


def _scalar(event: yaml.ScalarEvent) -> Any:
    if event.implicit[0]:  # written without quotes
        for pattern, convert in _PLAIN:
            if pattern.fullmatch(event.value):
                return convert(event.value)
    return event.value
