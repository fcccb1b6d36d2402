"""Measure the links of a cluster and how messages slow computing down."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from parallel.calibration.compute_table import MESSAGES_SHARE
from parallel.calibration.link_fit import Pattern, Point, across, fit_link, patterns
from parallel.calibration.messages import SIZES, Messages, latency_in_a_step_s, overlap_slowdown
from parallel.calibration.op_times import OpTimer
from parallel.calibration.samples import rounded
from parallel.calibration.setup import Setup
from parallel.calibration.shapes import OpShape, op_shapes
from parallel.cluster import Link, Measured
from parallel.runtime.communication.transport import Transport
from parallel.runtime.instrumentation.clock import Clock

MINIMUM_ROUNDS, MESSAGE_ROUNDS, SLOWDOWN_ROUNDS, LATENCY_ROUNDS = 3, 25, 15, 15
"""Rounds of all message sizes (at least, at most), of the slowdown and of the latency."""


@dataclass(frozen=True)
class Links:
    """The links of a cluster, with the sources of their numbers by name."""

    inside: Link
    between: Link | None
    overlap_slowdown: float
    sources: Mapping[str, str]


def measure_links(setup: Setup, timer: OpTimer, compute: Measured) -> Links:
    """Return the measured links; on a single worker, a link with the speed of copying."""
    if setup.world.size == 1:
        speed = rounded(SIZES[-1] / compute.copy_s(SIZES[-1] // 4, setup.precision))
        source = "speed of copying in memory: one worker sends no messages"
        return Links(
            Link(0.0, ((1.0, speed),)),
            None,
            0.0,
            dict.fromkeys(("inside.latency", "inside.bandwidth", "overlap_slowdown"), source),
        )
    setup.progress.phase("messages")
    messages = Messages(setup.world, Transport(setup.world, Clock(setup.world.device)))
    shapes = op_shapes(setup.graph, setup.batch_size, setup.world.size)
    per_node = setup.workers_per_node
    by_node = [range(i * per_node, (i + 1) * per_node) for i in range(setup.nodes)]
    sources: dict[str, str] = {}
    links: dict[str, Link] = {}
    for name, chosen in (("inside", list(patterns(by_node[0]))), ("between", list(across(by_node)))):
        if chosen:
            links[name] = _measure_link(setup, timer, messages, name, chosen, shapes)
            sources |= {
                f"{name}.latency": "measured: small messages after every pass of an op",
                f"{name}.bandwidth": f"measured: patterns {', '.join(p.name for p in chosen)}",
            }
    op = _smallest_convolution(shapes)
    setup.progress.phase("computing during messages")
    slowdown = overlap_slowdown(messages, setup.world, lambda: _run_once(timer, {op.op: op}), SLOWDOWN_ROUNDS)
    sources["overlap_slowdown"] = f"measured: {op.op} during messages among all workers"
    if "inside" not in links:
        if "between" not in links:
            raise RuntimeError("there are no two workers to measure a link between")
        links["inside"] = links["between"]
        source = "as between nodes: a node has one worker, and nothing is sent inside it"
        sources |= {"inside.latency": source, "inside.bandwidth": source}
    return Links(links["inside"], links.get("between"), rounded(slowdown), sources)


def _measure_link(
    setup: Setup,
    timer: OpTimer,
    messages: Messages,
    name: str,
    chosen: Sequence[Pattern],
    shapes: Mapping[str, Sequence[OpShape]],
) -> Link:
    """Return the link fitted to the times of these patterns, with its latency in a step."""
    node_of = {worker: worker // setup.workers_per_node for worker in range(setup.world.size)}
    budget = MESSAGES_SHARE * setup.options.budget_s / (2 if setup.nodes > 1 else 1)
    link, error = fit_link(_points(setup, messages, chosen, budget), node_of)
    local = {op: _nearest_share(of_op, setup.world.size) for op, of_op in shapes.items()}
    latency = latency_in_a_step_s(
        messages, setup.world, chosen, lambda after: _run_once(timer, local, after), LATENCY_ROUNDS
    )
    setup.progress.note(f"messages {name} nodes: the fitted link's times are off by {error:.1%} on average")
    return dataclasses.replace(link, latency_s=rounded(max(link.latency_s, latency)))


def _points(setup: Setup, messages: Messages, chosen: Sequence[Pattern], budget: float) -> list[Point]:
    """Return medians of all patterns at all sizes, measured in rounds until the budget is spent."""
    seconds: defaultdict[tuple[Pattern, int], list[float]] = defaultdict(list)
    begin, rounds = time.perf_counter(), 0
    while rounds < MINIMUM_ROUNDS or (
        rounds < MESSAGE_ROUNDS and setup.slowest(time.perf_counter() - begin) < budget
    ):
        for size in SIZES:
            for pattern in chosen:
                seconds[pattern, size].append(messages.seconds(pattern, size))
        rounds += 1
        setup.progress.done(max(rounds / MESSAGE_ROUNDS, (time.perf_counter() - begin) / budget))
    return [Point(pattern, size, statistics.median(samples)) for (pattern, size), samples in seconds.items()]


def _nearest_share(shapes: Sequence[OpShape], workers: int) -> OpShape:
    """Return the shape whose output is closest to one worker's share of the largest shape's."""
    target = shapes[0].key.elements_out / workers
    return min(shapes, key=lambda shape: abs(shape.key.elements_out - target))


def _smallest_convolution(shapes: Mapping[str, Sequence[OpShape]]) -> OpShape:
    """Return the smallest shape of the op with the most multiply-adds per parameter.

    Repeated often, small ops can fill about the time of a message.
    """
    dense = max(
        (of_op[0].key for of_op in shapes.values()), key=lambda key: key.multiply_adds / (key.parameters + 1)
    )
    return min(
        (shape for of_op in shapes.values() for shape in of_op if shape.key.head == dense.head),
        key=lambda shape: shape.key.multiply_adds,
    )


def _run_once(
    timer: OpTimer, shapes: Mapping[str, OpShape], after: Callable[[], None] = lambda: None
) -> None:
    """Run the shapes and discard the times."""
    timer.run(shapes, after)
    timer.times.collect()
