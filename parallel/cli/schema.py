"""Register the types of the configuration with Hydra, and convert a composed node to a `Config`.

Hydra checks files in conf/ and overrides against these types, so an error names the file or the
override. The choices in `choices.CHOICES` are registered from their dataclasses and need no file in
conf/.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from parallel.cli.choices import CHOICES
from parallel.cli.hydra_private import forget_submitit
from parallel.config import (
    AUTO,
    ClusterConfig,
    Config,
    TrackerConfig,
    TrainerConfig,
    require,
    require_one_of,
    require_plain,
)
from parallel.config.checks import shortened
from parallel.config.typed import structure
from parallel.results.settings import flat

FIXED = {"cluster": ClusterConfig(), "trainer": TrainerConfig(), "tracker": TrackerConfig()}
"""Groups whose files all have the same keys."""
GROUPS = (*CHOICES, *FIXED)


@dataclass
class Schema:
    """`Config` with untyped groups: the dataclass of a group depends on the choice in it."""

    model: Any = None
    data: Any = None
    strategy: Any = None
    cluster: Any = None
    trainer: Any = None
    tracker: Any = None
    workers: int | None = None
    sweep: str | None = None
    repeats: int = 1
    repeat: int = 1
    resume: str = AUTO


def option_names() -> list[str]:
    """Return the name of every option of every choice, as overrides have it: `trainer.lr`."""
    groups: list[tuple[str, Any]] = [*FIXED.items()]
    groups += [(group, options) for group, choices in CHOICES.items() for options in choices.values()]
    return [name for group, options in groups for name in flat(dataclasses.asdict(options), f"{group}.")]


@functools.cache
def register_schema() -> None:
    """Register the types of the configuration with Hydra, once in a process: its store is global."""
    forget_submitit()
    store = ConfigStore.instance()
    root = OmegaConf.structured(Schema)
    for group, options in FIXED.items():
        root[group] = typed_node(options)
    store.store(name="schema", node=root, provider="parallel")
    for group, choices in CHOICES.items():
        for name, options in choices.items():
            store.store(group=group, name=name, node=typed_node(options), provider="parallel")


def typed_node(options: Any) -> DictConfig:
    """Return a node with the type of `options` that overrides may change, although the dataclass is
    frozen."""
    node = OmegaConf.structured(options)
    for each in (node, *(value for value in node.values() if isinstance(value, DictConfig))):
        OmegaConf.set_readonly(each, None)
    return node


def config_of(values: Mapping[str, Any]) -> Config:
    """Return the validated `Config`. Raises `ValueError` that names the field, the value and the
    rule."""
    known = [field.name for field in dataclasses.fields(Config)]
    for key in values:
        require(
            key in known,
            key,
            values[key],
            f"is not a known key; the configuration has {', '.join(sorted(known))}",
        )
    missing = [key for key in known if key not in values]
    if missing:
        raise ValueError(f"the configuration lacks {', '.join(missing)}")
    groups = {group: options_of(group, values[group]) for group in GROUPS}
    workers = structure(int | None, values["workers"], "workers")  # type: ignore[arg-type]
    sweep = structure(str | None, values["sweep"], "sweep")  # type: ignore[arg-type]
    repeats, repeat = (structure(int, values[name], name) for name in ("repeats", "repeat"))
    resume = structure(str, values["resume"], "resume")
    return Config(**groups, workers=workers, sweep=sweep, repeats=repeats, repeat=repeat, resume=resume)


def options_of(group: str, values: Mapping[str, Any]) -> Any:
    """Return the options of a group as the dataclass of its choice. All interpolations in `values`
    are resolved already."""
    require(isinstance(values, Mapping), group, values, "must be a mapping of options")
    require_plain(group, values)  # OmegaConf converts whole numbers to floats without a check
    if group in CHOICES:
        require_one_of(group, values.get("name"), tuple(sorted(CHOICES[group])))
    default: Any = CHOICES[group][values["name"]] if group in CHOICES else FIXED[group]
    known = {field.name for field in dataclasses.fields(default)}
    for key, value in values.items():
        if key not in known:
            raise ValueError(unknown_key(group, shortened(key), values, f"={shortened(str(value))}"))
    resolved = {key: escaped(value) if isinstance(value, str) else value for key, value in values.items()}
    node = OmegaConf.merge(OmegaConf.create({group: typed_node(default)}), {group: resolved})
    return OmegaConf.to_object(OmegaConf.select(node, group))


def escaped(text: str) -> str:
    """Return a text in which OmegaConf finds no interpolation."""
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + "\\${", text)


def unknown_key(group: str, key: str, values: Mapping[str, Any], stated: str = "") -> str:
    """Return the error message for an invalid key; `stated` is "=value" if the value is known."""
    if group in FIXED:
        names = sorted(vars(FIXED[group]))
        return f"{group}.{key} is not a known key; {group} has {', '.join(names)}"
    name = values["name"]
    default: Any = CHOICES[group].get(name)
    fields = [field.name for field in dataclasses.fields(default)] if default is not None else list(values)
    options = ", ".join(field for field in fields if field != "name") or "none"
    return f"{group}.{key}{stated} does not belong to {group}={name}; its options are: {options}"
