"""The configuration of a run that is on disk, with overrides, to evaluate it elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from parallel.cli.compose import compose_config, parse_overrides, quote, sentence
from parallel.cli.schema import escaped, options_of
from parallel.config import Config
from parallel.config.strategy import BASELINE
from parallel.results.json_files import naming

TRAINER = ("batch_size", "precision", "seed", "channels_last", "compile")
"""Options of the trainer that evaluation uses."""


def evaluation_config(run: Path, stored: Mapping[str, Any], overrides: Sequence[str], world: int) -> Config:
    """Return the configuration that evaluates a run on `world` workers; `run` is the file that it
    is described in, with the configuration `stored`.

    Model, data and some options of the trainer are the run's, strategy and cluster are not.
    Overrides replace them. Raises `ValueError` for an invalid configuration.
    """
    with naming(run):
        ours = list(_stored_overrides(stored))
    given = {override.key_or_group: override.input_line for override in parse_overrides(overrides)}
    if "experiment" in given:
        raise ValueError(
            f"{given['experiment']} is not possible here: model and data are those of the run; "
            "give the options that differ, as in data.root=/data/imagenet"
        )
    strategy = [] if "strategy" in given else [f"strategy={BASELINE if world == 1 else 'data_parallel'}"]
    kept = [override for group, override in ours if group not in given]
    return compose_config([*kept, *strategy, *overrides])


def _stored_overrides(stored: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the run's options as group and override."""
    for group in ("model", "data", "trainer"):
        try:
            options = options_of(group, stored.get(group, {}))
        except OmegaConfBaseException as error:
            raise ValueError(sentence(error)) from None
        if group != "trainer":
            yield group, f"{group}={options.name}"
        for field in dataclasses.fields(options):
            if field.name in TRAINER if group == "trainer" else field.name != "name":
                yield group, f"{group}.{field.name}={_literal(getattr(options, field.name))}"


def _literal(value: object) -> str:
    """Return a value in Hydra's override grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return quote(escaped(value)) if isinstance(value, str) else repr(value)
