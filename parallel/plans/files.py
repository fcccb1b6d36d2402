"""Read plans from YAML files. Invalid plans are rejected with the key, the value and the rule.

Types and keys are checked by `config.typed`, rules that depend on the graph by `make_plan`. The
YAML loader is adapted by hand: PyYAML reads the word `on` as true and keeps the last of two equal
keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from parallel.config import require
from parallel.config.typed import structure
from parallel.graph import Graph
from parallel.plans.layout import Layout
from parallel.plans.plan import Plan, make_plan


class _Loader(yaml.SafeLoader):
    """YAML loader without booleans, since YAML 1.1 reads the key `on` as true; rejects repeated
    keys."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [key.value for key, _ in node.value]
    for key in keys:
        require(keys.count(key) == 1, "plan", key, "is given twice")
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


@dataclass(frozen=True)
class PlanFile:
    """The keys of a plan file; the defaults are those of `Plan`."""

    workers: int
    ops: dict[str, Layout]
    micro_batches: int = Plan.micro_batches
    scheme: str = Plan.scheme
    pipeline: str = Plan.pipeline
    update: str = Plan.update


def read_plan(text: str, graph: Graph, workers: int | None = None) -> Plan:
    """Read the plan in `text` and check it against the graph and, if given, the number of
    workers."""
    try:
        data = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"the plan is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict) or not isinstance(data.get("ops"), dict):
        raise ValueError("the plan must be a mapping with the keys workers and ops")
    data.pop("searched", None)  # the header of a plan that a search saved
    file = structure(PlanFile, data)
    require(
        workers in (None, file.workers),
        "workers",
        workers,
        f"does not fit the plan, which is for {file.workers}",
    )
    return make_plan(
        graph,
        file.workers,
        file.ops,
        micro_batches=file.micro_batches,
        scheme=file.scheme,
        pipeline=file.pipeline,
        update=file.update,
    )
