"""Measure the links of a cluster and how messages slow computing down."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from parallel.calibration.compute_table import MESSAGES_SHARE
from parallel.calibration.link_fit import Pattern, Point, across, fit_link, patterns
from parallel.calibration.messages import (
    HIDDEN_BYTES,
    SIZES,
    Messages,
    latency_in_a_step_s,
    overlap_slowdown,
    slowdown_of,
)
from parallel.calibration.op_times import OpTimer
from parallel.calibration.samples import rounded
from parallel.calibration.setup import Setup
from parallel.calibration.shapes import OpShape, op_shapes
from parallel.calibration.stopwatch import open_stopwatch, seconds_together
from parallel.cluster import AllReduce, Link, Measured
from parallel.runtime.communication.transport import Transport
from parallel.runtime.instrumentation.clock import Clock

MINIMUM_ROUNDS, MESSAGE_ROUNDS, SLOWDOWN_ROUNDS, LATENCY_ROUNDS = 3, 25, 15, 15
"""Rounds of all message sizes (at least, at most), of the slowdown and of the latency."""
ALL_REDUCE_SHARE, ALL_REDUCE_ROUNDS = 0.05, 5
"""Share of the time budget for all-reduces, and rounds of how they slow computing down."""


@dataclass(frozen=True)
class Links:
    """The links of a cluster, with the sources of their numbers by name."""

    inside: Link
    between: Link | None
    overlap_slowdown: float
    sources: Mapping[str, str]


def measure_all_reduce(setup: Setup, timer: OpTimer) -> AllReduce | None:
    """Return the backend's all-reduce among all workers; None on a single worker."""
    world = setup.world
    if world.size == 1:
        return None
    setup.progress.phase("all-reduce of the backend")
    watch = open_stopwatch(world.device, only_enqueues=world.backend == "nccl")
    tensor = torch.zeros(max(SIZES) // 4, device=world.device)

    def seconds(nbytes: int) -> float:
        def work() -> None:
            world.start_sum(tensor[: nbytes // 4])()

        return max(seconds_together(watch, world, work, align=work))

    rounds: defaultdict[int, list[float]] = defaultdict(list)
    begin = time.perf_counter()
    while len(rounds[SIZES[-1]]) < MINIMUM_ROUNDS + 1 or (
        len(rounds[SIZES[-1]]) < MESSAGE_ROUNDS
        and setup.slowest(time.perf_counter() - begin) < ALL_REDUCE_SHARE * setup.options.budget_s
    ):
        for size in SIZES:
            rounds[size].append(seconds(size))
        setup.progress.done((time.perf_counter() - begin) / (ALL_REDUCE_SHARE * setup.options.budget_s))
    # The first sum of each size allocates buffers.
    times = {size: statistics.median(samples[1:]) for size, samples in rounds.items()}
    op = _convolution(op_shapes(setup.graph, setup.batch_size, world.size), largest=watch.behind)
    slowdown = slowdown_of(
        lambda: world.start_sum(tensor[: HIDDEN_BYTES // 4]),
        times[HIDDEN_BYTES],
        world,
        watch,
        lambda: timer.run({op.op: op}, measure=False),
        ALL_REDUCE_ROUNDS,
    )
    everyone = Pattern("all-reduce", {(0, 1): 1.0})  # its load is the size of the tensor
    points = [Point(everyone, size, median) for size, median in times.items()]
    return AllReduce(fit_link(points, {0: 0, 1: 1})[0], rounded(slowdown))


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
    # The largest nodes first; sorted() keeps the order of equal ones.
    by_node = sorted((host.workers for host in setup.world.hosts), key=len, reverse=True)
    sources: dict[str, str] = {}
    links: dict[str, Link] = {}
    for name, chosen in (("inside", list(patterns(by_node[0]))), ("between", list(across(by_node)))):
        if chosen:
            links[name] = _measure_link(setup, timer, messages, name, chosen, shapes)
            sources |= {
                f"{name}.latency": "measured: small messages after every pass of an op",
                f"{name}.bandwidth": f"measured: patterns {', '.join(p.name for p in chosen)}",
            }
    op = _convolution(shapes, largest=messages.watch.behind)
    setup.progress.phase("computing during messages")
    slowdown = overlap_slowdown(
        messages, setup.world, lambda: timer.run({op.op: op}, measure=False), SLOWDOWN_ROUNDS
    )
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
    node_of = {worker: host.index for host in setup.world.hosts for worker in host.workers}
    budget = MESSAGES_SHARE * setup.options.budget_s / (2 if setup.nodes > 1 else 1)
    link, error = fit_link(_points(setup, messages, chosen, budget), node_of)
    local = {op: _nearest_share(of_op, setup.world.size) for op, of_op in shapes.items()}
    latency = latency_in_a_step_s(
        messages, setup.world, chosen, lambda after: timer.run(local, after, measure=False), LATENCY_ROUNDS
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


def _convolution(shapes: Mapping[str, Sequence[OpShape]], *, largest: bool) -> OpShape:
    """Return the smallest or largest shape of the op with the most multiply-adds per parameter.

    Repeated often, small ops can fill about the time of a message. On a device that runs behind the
    host they would fill its queue first, so there a large one lasts longer than the message.
    """
    dense = max(
        (of_op[0].key for of_op in shapes.values()), key=lambda key: key.multiply_adds / (key.parameters + 1)
    )
    choose = max if largest else min
    return choose(
        (shape for of_op in shapes.values() for shape in of_op if shape.key.head == dense.head),
        key=lambda shape: shape.key.multiply_adds,
    )
