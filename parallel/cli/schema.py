"""The configuration's types as Hydra knows them, and the way from a composed node back to a `Config`.

A file of conf/ and an override are checked against these types where they stand. The choices of `choices.CHOICES` are
registered with Hydra from their dataclasses, so that they need no file in conf/.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from parallel.cli.choices import CHOICES
from parallel.config import ClusterConfig, Config, TrackerConfig, TrainerConfig, require, require_one_of

FIXED = {"cluster": ClusterConfig(), "trainer": TrainerConfig(), "tracker": TrackerConfig()}
"""Groups whose files all have the same keys."""
GROUPS = (*CHOICES, *FIXED)


@dataclass
class Schema:
    """`Config` with its groups left open: which dataclass a group has is decided by what the group names."""

    model: Any = None
    data: Any = None
    strategy: Any = None
    cluster: Any = None
    trainer: Any = None
    tracker: Any = None
    workers: int | None = None
    sweep: str | None = None


def register_schema() -> None:
    """Make the types of the configuration known to Hydra."""
    store = ConfigStore.instance()
    root = OmegaConf.structured(Schema)
    for group, options in FIXED.items():
        root[group] = typed_node(options)
    store.store(name="schema", node=root, provider="parallel")
    for group, choices in CHOICES.items():
        for name, options in choices.items():
            store.store(group=group, name=name, node=typed_node(options), provider="parallel")


def typed_node(options: Any) -> DictConfig:
    """Return a node of the type of `options` that overrides may change, though the dataclass is frozen."""
    node = OmegaConf.structured(options)
    OmegaConf.set_readonly(node, None)
    return node


def config_of(values: Mapping[str, Any]) -> Config:
    """Return the validated `Config` of a composed configuration. `ValueError` names field, value and rule."""
    known = [field.name for field in dataclasses.fields(Config)]
    for key in values:
        require(key in known, key, values[key], f"is not a known key; the configuration has {', '.join(sorted(known))}")
    groups = {group: options_of(group, values[group]) for group in GROUPS}
    return Config(**groups, workers=values["workers"], sweep=values["sweep"])


def options_of(group: str, values: Mapping[str, Any]) -> Any:
    """Return the options of one group, of the type that its name asks for."""
    require(isinstance(values, Mapping), group, values, "must be a mapping of options")
    if group in CHOICES:
        require_one_of(group, values.get("name"), tuple(sorted(CHOICES[group])))
    default: Any = CHOICES[group][values["name"]] if group in CHOICES else FIXED[group]
    known = {field.name for field in dataclasses.fields(default)}
    for key, value in values.items():
        if key not in known:
            raise ValueError(unknown_key(group, key, values, f"={value}"))
    node = OmegaConf.merge(OmegaConf.create({group: typed_node(default)}), {group: dict(values)})
    return OmegaConf.to_object(OmegaConf.select(node, group))


def unknown_key(group: str, key: str, values: Mapping[str, Any], stated: str = "") -> str:
    """Return the sentence that refuses the key of a group; `stated` is "=value" where the value is known."""
    if group in FIXED:
        names = sorted(vars(FIXED[group]))
        return f"{group}.{key} is not a known key; {group} has {', '.join(names)}"
    name = values["name"]
    default: Any = CHOICES[group].get(name)
    fields = [field.name for field in dataclasses.fields(default)] if default is not None else list(values)
    options = ", ".join(field for field in fields if field != "name") or "none"
    return f"{group}.{key}{stated} does not belong to {group}={name}; its options are: {options}"
