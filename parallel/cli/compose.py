"""Compose a `Config` from `conf/` and command-line overrides with Hydra.

Hydra checks keys and types against the schema, so an error names the file or the override; the
dataclasses check the values. Every error becomes a `ValueError` with one sentence.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from parallel.cli.schema import CHOICES, FIXED, GROUPS, config_of, register_schema, unknown_key
from parallel.config import Config, require
from parallel.config.checks import shortened

PACKAGE = Path(__file__).resolve().parents[1]
CONF = next((conf for conf in (PACKAGE / "conf", PACKAGE.parent / "conf") if conf.is_dir()), PACKAGE / "conf")
"""The configuration: in an installed wheel within the package, in a source tree beside it."""
VERSION_BASE = "1.3"
NO_CODE = "a configuration contains values, never code to run"
PLUGIN_TARGETS = ("hydra.launcher", "hydra.sweeper")
"""Keys where Hydra instantiates a `_target_`, only of an installed launcher or sweeper plugin."""

TARGET_KEY = re.compile(r"(?<!\w)_target_['\"]?\s*[:=]")
UNKNOWN_KEY = (ConfigAttributeError, ConfigKeyError)
OMEGACONF_DETAILS = ("full_key: ", "reference_type=", "object_type=")


def compose_node(overrides: Sequence[str]) -> DictConfig:
    """Compose conf/config.yaml with `overrides`, including Hydra's own node.

    Raises `ValueError` for invalid overrides or files.
    """
    if not CONF.is_dir():
        raise ValueError(f"conf={CONF} does not exist: the installation is damaged, install it again")
    register_schema()
    parsed = parse_overrides(overrides)
    try:
        with initialize_config_dir(str(CONF), job_name="train", version_base=VERSION_BASE):
            node = compose("config", list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ValueError(sentence(error, parsed)) from error
    except (AssertionError, AttributeError, OverflowError) as error:
        # OmegaConf raises these for an override inside of a mapping that is null, and for a whole
        # number that no float can hold.
        raise ValueError(f"an override cannot be applied to the configuration: {sentence(error)}") from error
    except RecursionError:
        raise ValueError("the configuration is nested too deeply to be composed") from None
    refuse_targets(node)
    return node


def to_config(node: DictConfig) -> Config:
    """Return the validated `Config` of a composed node.

    Raises `ValueError` that names the field, the value and the rule.
    """
    task = copy.deepcopy(node)
    with open_dict(task):
        task.pop("hydra", None)
    try:
        values = OmegaConf.to_container(task, resolve=True, throw_on_missing=True)
        if not isinstance(values, dict):
            raise TypeError(
                f"the composed configuration is a {type(values).__name__}: conf/config.yaml is damaged"
            )
        config = config_of({str(key): value for key, value in values.items()})
    except OmegaConfBaseException as error:
        raise ValueError(sentence(error)) from error
    _refuse_two_batches(config.trainer.batch_per_worker, OmegaConf.select(node, "hydra.overrides.task") or [])
    return config


def _refuse_two_batches(per_worker: int | None, overrides: Iterable[object]) -> None:
    """Raise `ValueError` if an override sets a global batch that the batch per worker would replace."""
    for override in overrides if per_worker is not None else []:
        key, _, value = str(override).lstrip("+").partition("=")
        require(
            key != "trainer.batch_size",
            key,
            value,
            f"and trainer.batch_per_worker={per_worker} exclude each other: give one of them "
            "(trainer.batch_per_worker=null ends that of an experiment)",
        )


def compose_config(overrides: Sequence[str]) -> Config:
    """Return the `Config` for command-line overrides."""
    return to_config(compose_node(overrides))


def refuse_targets(node: DictConfig) -> None:
    """Raise `ValueError` if a composed configuration names code to run, also in a Hydra callback."""
    for key in _target_keys(OmegaConf.to_container(node, resolve=False), ""):
        if key not in PLUGIN_TARGETS:
            raise ValueError(f"{key or 'configuration'}._target_ is not allowed: {NO_CODE}")


def _target_keys(value: Any, prefix: str) -> Iterator[str]:
    """Yield the dotted keys of all mappings in `value` that have a key `_target_`."""
    if not isinstance(value, (dict, list)):
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if key == "_target_":
            yield prefix
        else:
            yield from _target_keys(inner, f"{prefix}.{key}" if prefix else str(key))


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides. Raises `ValueError` for invalid syntax and for a `_target_`."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ValueError(sentence(error)) from error
    except ValueError as error:  # a whole number with thousands of digits
        raise ValueError(f"an argument cannot be read as key=value: {error}") from None
    except RecursionError:
        raise ValueError("an argument is nested too deeply to be read as key=value") from None
    for override in parsed:
        if TARGET_KEY.search(override.input_line or ""):
            raise ValueError(f"{override.input_line} is not allowed: {NO_CODE}")
        group, _, option = override.key_or_group.partition(".")
        if option == "name" and group in CHOICES:
            raise ValueError(
                f"{override.input_line} is not possible: use {group}= with one of {', '.join(CHOICES[group])}"
            )
        if override.key_or_group not in (*GROUPS, "experiment") or override.is_sweep_override():
            continue
        named = override.value()
        if not all(
            isinstance(name, (str, type(None))) for name in (named if isinstance(named, list) else [named])
        ):
            choices = CHOICES.get(override.key_or_group)
            folder = f"a file of conf/{override.key_or_group}/"
            what = folder if choices is None else f"one of {', '.join(choices)}"
            raise ValueError(f"{override.input_line} must name {what}")
    return parsed


def shared_overrides(parsed: Sequence[Override]) -> list[str]:
    """Return the overrides that all jobs of a sweep share.

    Options of a swept group are left out: `strategy.scheme=a` can be checked only with the job's
    strategy.
    """
    swept = {f"{override.key_or_group}." for override in parsed if override.is_sweep_override()}
    return [
        override.input_line or ""
        for override in parsed
        if not override.is_sweep_override() and not override.key_or_group.startswith(tuple(swept))
    ]


def launcher_lists(arguments: Sequence[str], parsed: Sequence[Override]) -> list[str]:
    """Return the arguments with every choice of a launcher's option as a list:
    `hydra.launcher.rate=[1gbit,5gbit]`. Hydra sweeps over no option of its own."""
    lists = {
        override.input_line: f"{override.key_or_group}=[{','.join(override.sweep_string_iterator())}]"
        for override in parsed
        if override.key_or_group.startswith("hydra.launcher.") and override.is_discrete_sweep()
    }
    return [lists.get(argument, argument) for argument in arguments]


def sweep_overrides(parsed: Sequence[Override], shared: DictConfig) -> list[str]:
    """Return the overrides that name a sweep and the folders of its jobs, equal for equal sweeps.

    `shared` is the configuration without the swept keys; an experiment in it may name the sweep and
    sweep over keys (`hydra.sweeper.params`). Without a name, it is a hash of all overrides,
    independent of their order. A job's folder is named by the swept keys alone (`strategy=single`).
    """
    task = [override for override in parsed if not override.is_hydra_override()]
    result = []
    if shared.sweep is None and all(override.key_or_group != "sweep" for override in task):
        # Not `repeats`: with more of them a sweep goes on.
        named = [str(override.input_line) for override in task if override.key_or_group != "repeats"]
        lines = "\n".join(sorted(named))
        result.append(f"sweep=sweep-{hashlib.sha256(lines.encode()).hexdigest()[:8]}")
    swept = [override for override in task if override.is_sweep_override()]
    params = OmegaConf.select(shared, "hydra.sweeper.params") or {}
    if swept or params:
        # A key that the experiment sweeps stays in the names, also with a single value, so that commands
        # with other values add to the sweep.
        alone = [override.key_or_group for override in task if override not in swept]
        fixed = ["sweep", *(key for key in alone if key not in params)]
        result.append(f"hydra.job.config.override_dirname.exclude_keys=[{','.join(dict.fromkeys(fixed))}]")
    return result


def quote(value: str) -> str:
    """Return `value` as a quoted string of Hydra's override grammar.

    In this grammar, a backslash escapes only before a quote.
    """
    return "'" + re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), value) + "'"


def sentence(error: BaseException, overrides: Sequence[Override] = ()) -> str:
    """Return the message of an error of Hydra or OmegaConf as one sentence."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if group and error.options:
            return f"{group}={name} is not known; it must be one of {', '.join(sorted(error.options))}"
    if isinstance(error, OverrideParseException):
        reason = str(error.message).splitlines()[0]
        return f"the argument {shortened(repr(error.override))} cannot be read as key=value ({reason})"
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, UNKNOWN_KEY) and isinstance(cause.parent_node, DictConfig):
        where, _, key = str(cause.full_key).rpartition(".")
        if where in FIXED:
            return unknown_key(where, key, {})
        stated = [f"={o.value()}" for o in overrides if o.key_or_group == cause.full_key]
        if where in CHOICES:
            values = {str(name): cause.parent_node[name] for name in cause.parent_node}
            return unknown_key(where, key, values, "".join(stated[-1:]))
        keys = ", ".join(sorted(str(key) for key in cause.parent_node if key != "hydra"))
        return f"{cause.full_key} is not a known key; {where or 'the configuration'} has {keys}"
    if isinstance(cause, OmegaConfBaseException):
        detail = shortened(str(cause.msg or cause).splitlines()[0])
        return f"{cause.full_key}: {detail}" if cause.full_key else detail
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    names = [line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")]
    kept = [line for line in lines if not line.startswith(OMEGACONF_DETAILS)]
    return " ".join([*(f"{key}:" for key in names), *kept])
