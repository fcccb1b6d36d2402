"""Plans: a layout for every op, the scheme of the exchanges, and the number of micro-batches.

The text form of a plan is YAML:

    workers: 4
    micro_batches: 1
    ops:
      conv1: {n: 4, on: [0, 1, 2, 3]}
      fc6: {c: [2, 1, 1], on: [0, 1, 2]}   # weights: worker 0 has half of it
      fc8: {on: [0]}

An op that is not named follows another, `Graph.followed`; see `layout.follow`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from parallel.config import PIPELINES, UPDATES, require, require_number, require_one_of
from parallel.config.checks import MOST_MICRO_BATCHES, MOST_WORKERS
from parallel.graph import Graph
from parallel.graph.box import leaves_none_empty
from parallel.graph.ops import DIMS
from parallel.plans.layout import Layout, check_layout, follow

SCHEMES = ("a", "b", "c")
"""Schemes of the exchange after data-parallel ops (Krizhevsky 2014, section 4): a, all workers
gather at once; b, workers take turns; c, every worker sends 1/K of its samples in each pass."""


@dataclass(frozen=True)
class Plan:
    """Placement and order of the ops of a graph. `make_plan` and `read_plan` validate and build
    it."""

    workers: int
    layouts: Mapping[str, Layout] = field(hash=False)
    micro_batches: int = 1
    scheme: str = "a"
    pipeline: str = "1f1b"
    update: str = "step"

    def __post_init__(self) -> None:
        require_number("workers", self.workers, 1, MOST_WORKERS)
        require_number("micro_batches", self.micro_batches, 1, MOST_MICRO_BATCHES)
        require_one_of("scheme", self.scheme, SCHEMES)
        require_one_of("pipeline", self.pipeline, PIPELINES)
        require_one_of("update", self.update, UPDATES)
        require(
            self.update == "step" or self.scheme in ("b", "c"),
            "update",
            self.update,
            f"needs passes, which scheme={self.scheme} does not have",
        )

    def __getitem__(self, op: str) -> Layout:
        return self.layouts[op]

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @cached_property
    def fingerprint(self) -> str:
        """Eight hexadecimal digits that differ for different plans."""
        return hashlib.sha256(str(self).encode()).hexdigest()[:8]

    def __str__(self) -> str:
        head = {
            "workers": self.workers,
            "micro_batches": self.micro_batches,
            "scheme": self.scheme,
            "pipeline": self.pipeline,
            "update": self.update,
        }
        lines = [f"{key}: {value}" for key, value in head.items()] + ["ops:"]
        for name, layout in self.layouts.items():
            cuts = [
                f"{dim}: {list(by) if isinstance(by, tuple) else by}"
                for dim, by in zip(DIMS, layout.cuts, strict=True)
                if by != 1
            ]
            lines.append(f"  {name}: {{{', '.join([*cuts, f'on: {list(layout.on)}'])}}}")
        return "\n".join(lines) + "\n"


def make_plan(graph: Graph, workers: int, layouts: Mapping[str, Layout], **settings: Any) -> Plan:
    """Return the plan with the given layouts; every other op follows its producer.

    Raises `ValueError` with the op, the value and the rule for an invalid plan.
    """
    for name in layouts:
        require(
            name in graph, "ops", name, f"is not an op of the model; its ops are {', '.join(graph.names)}"
        )
    first = graph.ops[0].name
    if first not in layouts:
        raise ValueError(f"ops.{first}: the first op must be named, because the others follow it")
    complete: dict[str, Layout] = {}
    for op in graph:
        layout = layouts[op.name] if op.name in layouts else follow(op, complete[graph.followed(op)])
        check_layout(op, layout, workers)
        complete[op.name] = layout
    plan = Plan(workers=workers, layouts=complete, **settings)
    if plan.scheme != "a":
        leading = plan[first]
        require(
            leading.degrees[0] == len(leading.on),
            "scheme",
            plan.scheme,
            f"needs its first op split in n alone, not {leading}",
        )
        require(
            not leading.weighted,
            "scheme",
            plan.scheme,
            f"needs its first op split into equal parts, not {leading}: every pass takes as many samples",
        )
        require(
            plan.micro_batches == len(leading.on),
            "micro_batches",
            plan.micro_batches,
            f"must be the number of passes of scheme {plan.scheme}, one for each of {len(leading.on)} workers",
        )
    for op in graph:
        require(
            plan.micro_batches == 1 or not op.whole_batch,
            "micro_batches",
            plan.micro_batches,
            f"must be 1: {op.name} needs the statistics of the whole batch (schemes b and c cut it into passes)",
        )
    return plan


def check_batch(graph: Graph, plan: Plan, batch_size: int) -> None:
    """Raise `ValueError` if the plan cannot divide a global batch of `batch_size` samples."""
    require(
        batch_size % plan.micro_batches == 0,
        "trainer.batch_size",
        batch_size,
        f"must be a multiple of the plan's micro_batches={plan.micro_batches}",
    )
    samples = batch_size // plan.micro_batches
    for op in graph:
        require(
            batch_size >= op.least_samples,
            "trainer.batch_size",
            batch_size,
            f"is too small: {op.name} needs {op.least_samples} samples",
        )
        layout = plan[op.name]
        parts = f"{layout.degrees[0]} parts" + (f" {layout.n}" if isinstance(layout.n, tuple) else "")
        require(
            leaves_none_empty(samples, layout.n),
            "trainer.batch_size",
            batch_size,
            f"is too small: {op.name} is split in n into {parts} of {samples} samples"
            + (f" (1 of {plan.micro_batches} micro-batches)" if plan.micro_batches > 1 else ""),
        )
