"""Options in a sweep over strategies, models or data sets, which every swept choice must have."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from hydra.core.override_parser.types import Override

from parallel.cli.choices import CHOICES

PRESETS = "strategy=single,model_parallel_tensor"
"""Example of a sweep over a choice with an option: the files of conf/strategy/ are such choices."""


def refuse_options_of_some(parsed: Sequence[Override]) -> None:
    """Raise `ValueError` for an option such as `strategy.scheme=b` that a swept choice lacks.

    Choices that are files of their own are checked when their job is composed.
    """
    for override in parsed:
        group, _, option = override.key_or_group.partition(".")
        lacking = [name for name in _swept(group, parsed) if option and not _has(group, name, option)]
        if lacking:
            raise ValueError(
                f"{override.input_line} does not belong to {group}={lacking[0]}, which the sweep includes: "
                f"sweep over choices that state the option, as in {PRESETS}, or run two sweeps "
                "with the same sweep=NAME"
            )


def _swept(group: str, parsed: Sequence[Override]) -> Iterator[str]:
    if group not in CHOICES:
        return
    for override in parsed:
        if override.key_or_group == group and override.is_discrete_sweep():
            yield from (str(name) for name in override.sweep_string_iterator())


def _has(group: str, name: str, option: str) -> bool:
    choice = CHOICES[group].get(name)
    return choice is None or option in {field.name for field in dataclasses.fields(choice)}
