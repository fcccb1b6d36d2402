"""The combinations of a sweep's values, each with its configuration."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from hydra.core.override_parser.types import Override

from parallel.cli.compose import compose_config, parse_overrides, shared_overrides
from parallel.cli.values import whole_number
from parallel.config import Config, one_line
from parallel.config.checks import MOST_WORKERS
from parallel.prediction.sweep import Combination

WORKERS = "workers"


def combinations(overrides: Sequence[str]) -> tuple[list[str], list[Combination]]:
    """Return the keys that `a,b,c` values vary, and all combinations, the last key varying fastest.

    Raises `ValueError` for an error in the overrides that all combinations share; an error of one
    combination becomes its reason.
    """
    parsed = parse_overrides(overrides)
    varied = [override for override in parsed if override.is_sweep_override()]
    fixed = [override.input_line or "" for override in parsed if not override.is_sweep_override()]
    compose_config(shared_overrides(parsed))
    return [str(override.key_or_group) for override in varied], list(_composed(fixed, varied))


def _composed(fixed: Sequence[str], varied: Sequence[Override]) -> Iterator[Combination]:
    # Composing takes longer than predicting, so `workers`, which most sweeps vary, is set in a
    # composed configuration.
    composed: dict[tuple[str, ...], Config] = {}
    names = [str(override.key_or_group) for override in varied]
    for chosen in itertools.product(*([str(value) for value in o.sweep_string_iterator()] for o in varied)):
        values = dict(zip(names, chosen, strict=True))
        key = tuple(f"{name}={value}" for name, value in values.items() if name != WORKERS)
        try:
            if key not in composed:
                composed[key] = compose_config([*fixed, *key])
            config = composed[key]
            if WORKERS in values:
                workers = whole_number(WORKERS, values[WORKERS], MOST_WORKERS)
                config = dataclasses.replace(config, workers=workers)
            yield Combination(values, config)
        except ValueError as error:
            yield Combination(values, None, reason=one_line(error))
