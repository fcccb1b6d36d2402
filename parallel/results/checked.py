"""From what JSON holds to dataclasses: names and types are checked, and what is wrong is said in a sentence."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, TypeVar

from parallel.config import require

T = TypeVar("T")


def checked(cls: type[T], values: dict[str, Any], skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of dataclass `cls` from JSON, dataclasses within them made. `ValueError` names what does not fit."""
    hints = {name: hint for name, hint in typing.get_type_hints(cls).items() if name not in skip}
    missing, unknown = sorted(set(hints) - set(values)), sorted(set(values) - set(hints) - set(skip))
    if missing or unknown:
        raise ValueError(f"{cls.__name__} lacks {missing or 'nothing'} and has unknown {unknown or 'nothing'}")
    return {name: _checked_value(name, hint, values[name]) for name, hint in hints.items()}


def _checked_value(name: str, hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        require(isinstance(value, dict), name, value, "must be an object")
        return hint(**checked(hint, value))
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (typing.get_origin(hint) or hint,)
    ok = any(type(value) is a or (a is float and type(value) is int) for a in allowed)
    names = " or ".join("null" if a is type(None) else a.__name__ for a in allowed)
    require(ok, name, repr(value), f"must be {names}")
    return value
