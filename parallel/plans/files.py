"""Plan files: reading a plan from YAML. Invalid plans are rejected with the key, the value and the rule.

The checks are written by hand and not left to a library: a plan's `ops` are free-form layouts whose rules depend on the
graph, and PyYAML alone cannot tell a key given twice.
"""

from __future__ import annotations

from typing import Any

import yaml

from parallel.config import require
from parallel.graph import Graph
from parallel.graph.ops import DIMS
from parallel.plans.layout import Layout
from parallel.plans.plan import Plan, make_plan


class _Loader(yaml.SafeLoader):
    """YAML loader without booleans, because YAML 1.1 reads the key `on` as true; refuses a key given twice."""

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


def read_plan(text: str, graph: Graph, workers: int | None = None) -> Plan:
    """Read the plan in `text` and check it against the graph and, if given, the number of workers."""
    try:
        data = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"the plan is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict) or not isinstance(data.get("ops"), dict):
        raise ValueError("the plan must be a mapping with the keys workers and ops")
    known = ("workers", "micro_batches", "scheme", "pipeline", "update", "ops")
    data.pop("searched", None)  # the header of a plan that a search saved
    for key in data:
        require(key in known, "plan", key, f"is not a key of a plan; its keys are {', '.join(known)}")
    for key in ("workers", "micro_batches"):
        require(key not in data or type(data[key]) is int, key, data.get(key), "must be a whole number")
    require("workers" in data, "workers", None, "must be given in the plan")
    require(workers in (None, data["workers"]), "workers", workers,
            f"does not fit the plan, which is for {data['workers']}")
    settings = {key: data[key] for key in known[1:-1] if key in data}
    return make_plan(graph, data["workers"], {name: _read_layout(name, value) for name, value in data["ops"].items()},
                     **settings)


def _read_layout(name: str, value: object) -> Layout:
    where = f"ops.{name}"
    if not isinstance(value, dict):
        raise ValueError(f"{where}={value} must be a mapping such as {{n: 2, on: [0, 1]}}")
    for key, entry in value.items():
        require(key == "on" or key in DIMS, where, key, f"is neither `on` nor one of the dims {', '.join(DIMS)}")
        require(key == "on" or type(entry) is int, f"{where}.{key}", entry, "must be a whole number")
    on = value.get("on")
    if not isinstance(on, list) or not all(type(worker) is int for worker in on):
        raise ValueError(f"{where}.on={on} must be a list of workers such as [0, 1]")
    try:
        return Layout(**{**value, "on": tuple(on)})
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from error
