"""Plans: a layout for every op, the scheme of the exchanges, the number of micro-batches.

A layout cuts an op's output in some dims and says which worker holds which part. Parts are numbered row-major over
the dims n, c, k, h, w; part i is held by `on[i]`. The text form of a layout is `n2 c2 @0,1,2,3`; a plan's is YAML:

    workers: 4
    micro_batches: 1
    ops:
      conv1: {n: 4, on: [0, 1, 2, 3]}
      fc6: {c: 3, on: [0, 1, 2]}
      fc8: {on: [0]}

An op that is not named follows the producer of its first input, the images aside; see `follow`.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from parallel.config import PIPELINES, UPDATES, require, require_one_of
from parallel.graph import INPUT, Graph
from parallel.graph.box import Box, Span, cut
from parallel.graph.ops import DIMS, Op, Part

SCHEMES = ("a", "b", "c")
"""How data-parallel ops hand over to the rest (Krizhevsky 2014, section 4): a at once; b workers take turns;
c every worker sends 1/K of its samples per pass."""


@dataclass(frozen=True)
class Layout:
    """A degree per dim and the worker of each part."""

    on: tuple[int, ...]
    n: int = 1
    c: int = 1
    k: int = 1
    h: int = 1
    w: int = 1

    def __post_init__(self) -> None:
        for dim in DIMS:
            require(getattr(self, dim) >= 1, dim, getattr(self, dim), "must be a degree of at least 1")
        require(math.prod(self.degrees) == len(self.on), "on", list(self.on),
                f"must name as many workers as there are parts, {math.prod(self.degrees)}")
        require(len(set(self.on)) == len(self.on), "on", list(self.on), "must not name a worker twice")
        require(all(worker >= 0 for worker in self.on), "on", list(self.on), "must name workers from 0")

    @cached_property
    def degrees(self) -> tuple[int, ...]:
        return tuple(getattr(self, dim) for dim in DIMS)

    @cached_property
    def _indices(self) -> dict[int, dict[str, int]]:
        """By worker, its part's index along each dim; all at once, for there may be a thousand workers."""
        spaces = itertools.product(*map(range, self.degrees))
        return {worker: dict(zip(DIMS, index, strict=True)) for worker, index in zip(self.on, spaces, strict=True)}

    def index(self, worker: int) -> Mapping[str, int]:
        """Index along each dim of the part that `worker` holds."""
        return self._indices[worker]

    def part(self, op: Op, worker: int, samples: Span) -> Part:
        """The part of `op` that `worker` holds, for the samples `samples` of the global batch."""
        index = self.index(worker)
        start, stop = cut(samples[1] - samples[0], self.n, index["n"])
        spans = [(samples[0] + start, samples[0] + stop)]
        for dim, size in zip("chw", op.domain, strict=False):
            spans.append(cut(size, getattr(self, dim), index[dim]))
        return Part(Box(tuple(spans)), cut(op.extent("k"), self.k, index["k"]) if self.k > 1 else None)

    def terms(self, op: Op) -> int:
        """How many partial sums each element of the output is the sum of."""
        return math.prod(getattr(self, dim) for dim in op.sums_over)

    def __str__(self) -> str:
        cuts = [f"{dim}{degree}" for dim, degree in zip(DIMS, self.degrees, strict=True) if degree > 1]
        return " ".join([*cuts, "@" + ",".join(map(str, self.on))])


@dataclass(frozen=True)
class Plan:
    """Where every op of a graph is computed, and in what order. Made by `make_plan` or `read_plan`, which check it."""

    workers: int
    layouts: Mapping[str, Layout] = field(hash=False)
    micro_batches: int = 1
    scheme: str = "a"
    pipeline: str = "1f1b"
    update: str = "step"

    def __post_init__(self) -> None:
        require(self.workers >= 1, "workers", self.workers, "must be at least 1")
        require(self.micro_batches >= 1, "micro_batches", self.micro_batches, "must be at least 1")
        require_one_of("scheme", self.scheme, SCHEMES)
        require_one_of("pipeline", self.pipeline, PIPELINES)
        require_one_of("update", self.update, UPDATES)
        require(self.update == "step" or self.scheme in ("b", "c"), "update", self.update,
                f"needs passes, which scheme={self.scheme} has not")

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
            cuts = [f"{dim}: {getattr(layout, dim)}" for dim in DIMS if getattr(layout, dim) > 1]
            lines.append(f"  {name}: {{{', '.join([*cuts, f'on: {list(layout.on)}'])}}}")
        return "\n".join(lines) + "\n"


def follow(op: Op, layout: Layout) -> Layout:
    """The layout of an op that follows a producer's: the same parts on the same workers where the op allows it.

    A degree in a dim that the op cannot be split in, or in which it has too few positions, moves to c (after the
    producer's own c), or else to n. So a k split is followed by a split of the reduced output in c, a split feature
    map by split features, and the loss by a split in n alone.
    """
    return Layout(layout.on, *follow_degrees(op, layout.degrees))


def follow_degrees(op: Op, producer: tuple[int, ...]) -> tuple[int, ...]:
    """The degrees in n, c, k, h, w of an op that follows a producer with these."""
    degrees = dict(zip(DIMS, producer, strict=True))
    for dim in "khwc":
        fits = dim in op.dims and dim != "k" and degrees[dim] <= op.extent(dim)
        if degrees[dim] > 1 and not fits:
            target = "c" if dim != "c" and "c" in op.dims and degrees["c"] * degrees[dim] <= op.extent("c") else "n"
            degrees[target] *= degrees[dim]
            degrees[dim] = 1
    return tuple(degrees.values())


def make_plan(graph: Graph, workers: int, layouts: Mapping[str, Layout], **settings: Any) -> Plan:
    """The plan with a layout for every op of `graph`: those given, and for the rest `follow`.

    Raises `ValueError`, with the op, the value and the rule, for a plan that is not legal.
    """
    for name in layouts:
        require(name in graph, "ops", name, f"is not an op of the model; its ops are {', '.join(graph.names)}")
    first = graph.ops[0].name
    if first not in layouts:
        raise ValueError(f"ops.{first}: the first op must be named, for the others follow it")
    complete: dict[str, Layout] = {}
    for op in graph:
        leader = next((name for name in op.inputs if name != INPUT), first)
        layout = layouts[op.name] if op.name in layouts else follow(op, complete[leader])
        check_layout(op, layout, workers)
        complete[op.name] = layout
    plan = Plan(workers=workers, layouts=complete, **settings)
    if plan.scheme != "a":
        leading = plan[first]
        require(leading.n == len(leading.on), "scheme", plan.scheme,
                f"needs its first op split in n alone, not {leading}")
        require(plan.micro_batches == leading.n, "micro_batches", plan.micro_batches,
                f"must be the number of passes of scheme {plan.scheme}, one for each of {leading.n} workers")
    for op in graph:
        require(plan.micro_batches == 1 or not op.whole_batch, "micro_batches", plan.micro_batches,
                f"must be 1: {op.name} needs the statistics of the whole batch (schemes b and c cut it into passes)")
    return plan


def check_layout(op: Op, layout: Layout, workers: int) -> None:
    """Raise `ValueError` unless the op can be cut and placed like that."""
    where = f"ops.{op.name}"
    for worker in layout.on:
        require(worker < workers, f"{where}.on", list(layout.on), f"names a worker that workers={workers} has not")
    for dim, degree in zip(DIMS, layout.degrees, strict=True):
        if degree == 1:
            continue
        require(dim in op.dims, f"{where}.{dim}", degree,
                f"splits a dim that {type(op).__name__} cannot be split in; it has {', '.join(op.dims)}")
        if dim != "n":
            require(degree <= op.extent(dim), f"{where}.{dim}", degree,
                    f"is more parts than the dim has positions, {op.extent(dim)}")


def check_batch(graph: Graph, plan: Plan, batch_size: int) -> None:
    """Raise `ValueError` if a global batch of this size cannot be cut as the plan wants it."""
    require(batch_size % plan.micro_batches == 0, "trainer.batch_size", batch_size,
            f"must be a multiple of the plan's micro_batches={plan.micro_batches}")
    samples = batch_size // plan.micro_batches
    for op in graph:
        require(batch_size >= op.least_samples, "trainer.batch_size", batch_size,
                f"is too small: {op.name} needs {op.least_samples} samples")
        require(plan[op.name].n <= samples, "trainer.batch_size", batch_size,
                f"is too small: {op.name} is split in n into {plan[op.name].n} parts of {samples} samples"
                + (f" (1 of {plan.micro_batches} micro-batches)" if plan.micro_batches > 1 else ""))
