"""Dataclasses from plain values: `structure` (JSON, YAML) and `structure_text` (CSV cells,
`key=value` arguments).

cattrs does the conversion. msgspec was the alternative; it ignores unknown keys of dataclasses, so
that a misspelled optional key passes unnoticed, and its messages lack the rejected value. Two things
are added here: values are never coerced (cattrs reads `workers: "2"` and `workers: true` as whole
numbers), and the tree of errors that cattrs raises becomes one sentence with path, value and rule,
as all errors of the project.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from cattrs import (
    BaseValidationError,
    ClassValidationError,
    Converter,
    ForbiddenExtraKeysError,
    IterableValidationError,
)
from cattrs.cols import (
    homogenous_tuple_structure_factory,
    is_mapping,
    is_sequence,
    list_structure_factory,
    mapping_structure_factory,
)
from cattrs.gen import make_dict_structure_fn

from parallel.config.checks import MOST_DIGITS, shortened

T = TypeVar("T")
Hook = Callable[[Any, Any], Any]
Factory = Callable[[Any, Converter], Any]

SCALARS: Mapping[type, tuple[type, ...]] = {int: (int,), float: (float, int), str: (str,), bool: (bool,)}
"""Accepted types of the values for each type. They match exactly: true is not a number."""
WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?inf|nan")
"""Texts that are read as numbers. Python also reads ` 1_0` and digits of other scripts."""


class _Mismatch(Exception):
    """Raised for a value that is not of the declared type."""

    def __init__(self, value: object) -> None:
        super().__init__(value)
        self.value = value


def structure(cls: type[T], values: object, name: str = "") -> T:
    """Return `values` as `cls`, a dataclass or any type made of dataclasses, containers and
    scalars.

    Values that are instances of a declared dataclass already are kept.

    Raises `ValueError` with one sentence: the path to the value (beginning with `name`), the value,
    the rule.
    """
    return _structured(_converter(), cls, values, name)


def structure_text(cls: type[T], texts: Mapping[str, str], name: str = "") -> T:
    """Return texts by field, such as cells of a CSV file or arguments of a command, as the
    dataclass `cls`.

    Fields may be numbers (empty text is None where None is allowed), true or false, text, or tuples
    of these with commas between the elements. Raises `ValueError` as `structure` does.
    """
    return _structured(_text_converter(), cls, texts, name)


def _structured(converter: Converter, cls: type[T], values: object, name: str) -> T:
    try:
        return converter.structure(values, cls)
    except (BaseValidationError, _Mismatch) as error:
        raise ValueError(_sentence(error, name, cls)) from None


@cache
def _converter() -> Converter:
    converter = Converter(forbid_extra_keys=True)
    for scalar, accepted in SCALARS.items():
        converter.register_structure_hook(scalar, _scalar_hook(scalar, accepted))
    _register_containers(converter)
    return converter


@cache
def _text_converter() -> Converter:
    converter = Converter(forbid_extra_keys=True)
    for number in (int, float):
        converter.register_structure_hook(number, _number_from_text(number))
        converter.register_structure_hook(number | None, _number_from_text(number, empty_is_none=True))
    converter.register_structure_hook(str, _scalar_hook(str, (str,)))
    converter.register_structure_hook(bool, _bool_from_text)
    _register_containers(converter)
    converter.register_structure_hook_factory(_is_homogeneous_tuple, _tuple_from_text)
    return converter


def _scalar_hook(scalar: type, accepted: tuple[type, ...]) -> Hook:
    def hook(value: Any, _: Any) -> Any:
        if type(value) not in accepted:
            raise _Mismatch(value)
        try:
            return scalar(value)
        except OverflowError:  # a whole number that no float can hold
            raise _Mismatch(value) from None

    return hook


def _number_from_text(number: type[int] | type[float], empty_is_none: bool = False) -> Hook:
    def hook(text: str, _: Any) -> int | float | None:
        if not text and empty_is_none:
            return None
        if not NUMBER.fullmatch(text) or len(text) > MOST_DIGITS:
            raise _Mismatch(text)
        try:
            return number(text)
        except ValueError:
            raise _Mismatch(text) from None

    return hook


def _bool_from_text(text: str, _: Any) -> bool:
    if text not in ("true", "false"):
        raise _Mismatch(text)
    return text == "true"


def _tuple_from_text(cls: Any, converter: Converter) -> Hook:
    hook = homogenous_tuple_structure_factory(cls, converter)

    def split_hook(text: str, declared: Any) -> tuple[Any, ...]:
        return tuple(hook(text.split(","), declared))

    return split_hook


def _register_containers(converter: Converter) -> None:
    """Check the type of every container before cattrs iterates over it, so that text is not read as
    a list."""
    factories: tuple[tuple[Callable[[Any], bool], Factory, type | tuple[type, ...]], ...] = (
        (is_sequence, list_structure_factory, (list, tuple)),
        (_is_homogeneous_tuple, homogenous_tuple_structure_factory, (list, tuple)),
        (is_mapping, mapping_structure_factory, Mapping),
        (dataclasses.is_dataclass, make_dict_structure_fn, Mapping),
    )
    for matches, factory, accepted in factories:
        converter.register_structure_hook_factory(matches, _checked_factory(factory, accepted))
    converter.register_structure_hook_factory(_is_one_or_many, _one_or_many)


def _is_homogeneous_tuple(cls: Any) -> bool:
    return typing.get_origin(cls) is tuple and typing.get_args(cls)[1:] == (...,)


def _is_one_or_many(cls: Any) -> bool:
    """Return whether the type is a scalar or a tuple of them, as `int | tuple[int, ...]`."""
    if typing.get_origin(cls) not in (typing.Union, types.UnionType):
        return False
    options = typing.get_args(cls)
    return len(options) == 2 and options[0] in SCALARS and _is_homogeneous_tuple(options[1])


def _one_or_many(cls: Any, converter: Converter) -> Hook:
    one, many = typing.get_args(cls)
    hooks = {False: converter.get_structure_hook(one), True: converter.get_structure_hook(many)}

    def hook(value: Any, _: Any) -> Any:
        is_many = isinstance(value, (list, tuple))
        return hooks[is_many](value, many if is_many else one)

    return hook


def _checked_factory(factory: Factory, accepted: type | tuple[type, ...]) -> Factory:
    def checked_factory(cls: Any, converter: Converter) -> Hook:
        hook = factory(cls, converter)

        def checked_hook(value: Any, declared: Any) -> Any:
            if dataclasses.is_dataclass(cls) and isinstance(value, typing.cast(type, cls)):
                return value
            if not isinstance(value, accepted):
                raise _Mismatch(value)
            return hook(value, declared)

        return checked_hook

    return checked_factory


def _sentence(error: Exception, path: str, declared: Any) -> str:
    """Return the first error of the tree as a sentence; missing and unknown keys of a mapping share
    one."""
    if isinstance(error, _Mismatch):
        return f"{path or _name(declared)}={shortened(repr(error.value))} must be {_words(declared)}"
    if isinstance(error, ClassValidationError):
        named, others = error.group_exceptions()
        missing = [note.name for nested, note in named if isinstance(nested, KeyError)]
        unknown = [
            key
            for nested in others
            if isinstance(nested, ForbiddenExtraKeysError)
            for key in nested.extra_fields
        ]
        if missing or unknown:
            return _keys_sentence(path, _dataclass_in(declared), missing, unknown)
        if named:
            nested, note = named[0]
            return _sentence(nested, f"{path}.{note.name}" if path else note.name, note.type)
        return _sentence(others[0], path, declared)
    if isinstance(error, IterableValidationError):
        (nested, index), *_ = error.group_exceptions()[0]
        step = f"[{index.index}]" if isinstance(index.index, int) else f".{index.index}"
        return _sentence(nested, f"{path}{step}".removeprefix("."), index.type)
    if isinstance(error, ValueError):  # from a dataclass's __post_init__, which names the field
        return f"{path}.{error}" if path else str(error)
    raise error


def _keys_sentence(path: str, declared: Any, missing: Sequence[str], unknown: Sequence[str]) -> str:
    said = [f"lacks {', '.join(sorted(missing))}"] if missing else []
    if unknown:
        known = ", ".join(field.name for field in dataclasses.fields(declared))
        said.append(f"has unknown {shortened(', '.join(sorted(map(str, unknown))))}; its keys are {known}")
    return f"{path or _name(declared)} {' and '.join(said)}"


def _dataclass_in(declared: Any) -> Any:
    """Return the dataclass in a type such as `Inner | None`."""
    return next(
        option for option in (declared, *typing.get_args(declared)) if dataclasses.is_dataclass(option)
    )


def _words(declared: Any) -> str:
    """Return a type in words: `int | None` is "a whole number or null"."""
    if typing.get_origin(declared) in (typing.Union, types.UnionType):
        return " or ".join(map(_words, typing.get_args(declared)))
    if declared in WORDS:
        return WORDS[declared]
    if is_sequence(declared) or _is_homogeneous_tuple(declared):
        return "a list"
    return "a mapping"


def _name(declared: Any) -> str:
    """Return the name of a type in words: `PlanFile` is "plan file"."""
    name = getattr(declared, "__name__", str(declared))
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
