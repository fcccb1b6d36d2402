"""Read plans from YAML files. Invalid plans are rejected with the key, the value and the rule.

`config.documents` reads the YAML, `config.typed` checks types and keys, and `make_plan` the rules
that depend on the graph.
"""

from __future__ import annotations

from dataclasses import dataclass

from parallel.config import require
from parallel.config.documents import from_yaml
from parallel.config.typed import structure
from parallel.graph import Graph
from parallel.plans.layout import Layout
from parallel.plans.plan import Plan, make_plan


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
        data = from_yaml(text)
    except ValueError as error:
        raise ValueError(f"the plan is {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("ops"), dict):
        raise ValueError("the plan must be a mapping with the keys workers and ops")
    # A plan that a search saved has a header.
    file = structure(PlanFile, {key: value for key, value in data.items() if key != "searched"})
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
