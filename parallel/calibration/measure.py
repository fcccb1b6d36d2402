"""The calibration as a whole: what is measured when, and the cluster that comes of it.

The budget is divided: messages a fifth, loading a little, ops the rest. The ops' runs go round and round, with a whole
step in every round, so that each shape is spread over the whole time and a disturbance hits all alike. The workers
decide together when to go on, for they must run the same at the same time.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from scipy.stats import trim_mean
from sklearn.isotonic import IsotonicRegression

from parallel.calibration.display import Show
from parallel.calibration.messages import (
    SIZES,
    Messages,
    Pattern,
    Point,
    across,
    fit_link,
    overlap_slowdown,
    patterns,
    waiting_s,
)
from parallel.calibration.op_times import ADD, COPY, UPDATE, Chain
from parallel.calibration.settings import Settings
from parallel.calibration.shapes import Need, needed, passes
from parallel.calibration.step_overhead import WholeStep, image_s, sum_of_parts_s
from parallel.cluster import Cluster, Link, Measured
from parallel.cluster.machine import machine_of
from parallel.cluster.table import FORWARD, Curve, Table, Timing
from parallel.config import Config, require
from parallel.data import DataSet
from parallel.graph import Graph
from parallel.results.environment import memory_bytes, usable_cpus
from parallel.runtime.communication.transport import Transport
from parallel.runtime.communication.world import World
from parallel.runtime.execution.available_memory import available_memory
from parallel.runtime.instrumentation.clock import Clock

MESSAGES, LOADING = 0.2, 0.03
"""Shares of the budget; the rest is the ops'."""
REPEATS = 3
"""A shape measured fewer times is left to the regression."""
MESSAGE_ROUNDS, HIDDEN_ROUNDS, WAITING_ROUNDS, CROWD_ROUNDS = 25, 15, 15, 6
"""More are not worth their time."""

K = TypeVar("K")


class Calibration:
    """One calibration; every worker has one and calls it together with the others."""

    def __init__(self, config: Config, settings: Settings, world: World, data: DataSet, graph: Graph, show: Show,
                 known: Cluster | None) -> None:
        self._config, self._settings, self._world, self._graph = config, settings, world, graph
        self._data, self._show, self._known = data, show, known
        self._precision, self._batch = config.trainer.precision, config.trainer.batch_size
        self._local_batch = max(1, self._batch // world.size)
        self._chain = Chain(graph, world.device, self._precision, config.trainer.channels_last, world.size)
        self._whole = WholeStep(config, data, graph, world, self._local_batch)
        per_node = world.size // nodes()
        cores = (usable_cpus() or 1) // config.cluster.threads if world.device.type == "cpu" else per_node
        self._at_once = max(1, min(per_node, cores))
        """Workers of a node that compute while computing is measured: all, or as many as have cores of their own."""
        self._computes = world.rank % per_node < self._at_once
        self._steps: list[float] = []
        """Seconds of whole steps, of all workers."""

    def run(self) -> Cluster:
        """Measure what is not known yet, and make the cluster."""
        world, known = self._world, self._known
        table = self._ops()
        compute = Measured(table)
        inside, between, slowdown, sources = (
            (known.inside, known.between, known.overlap_slowdown, dict(known.sources)) if known is not None
            else self._messages(compute))
        crowding = known.core_contention if known is not None else self._core_contention()
        real = _mean(self._steps)
        priced = sum_of_parts_s(self._graph, self._local_batch, compute, self._precision)
        self._show.note(f"a step of one worker with {self._local_batch} samples takes {real:.4f} s, "
                        f"its parts {priced:.4f} s")
        self._show.phase("loading")
        loading = image_s(self._config, self._data, world, self._local_batch, LOADING * self._settings.budget_s)
        model, trainer = self._config.model, self._config.trainer
        sources |= {
            "memory": "what was free, divided by the workers of a node",
            "step_overhead": f"measured: a step of {model.name} with {self._local_batch} samples on every worker, "
                             "less its parts",
            "data.per_image": f"measured: {self._data.name} at {model.image_size} px, all workers at once",
        }
        if crowding:
            sources["core_contention"] = (
                "measured: steps of the model on 1, 2, … workers of a node, the others waiting")
        return Cluster(
            name="local", nodes=nodes(), workers_per_node=world.size // nodes(), inside=inside, between=between,
            memory_bytes=self._memory(), compute=compute, step_overhead_s=_short(max(0.0, real - priced)),
            overlap_slowdown=_short(slowdown), core_contention=crowding, shared_memory=bool(world.neighbours),
            data_s_per_image=_short(loading),
            data_shared=False, data_overlaps=world.device.type == "cuda",
            machine=machine_of(self._config.cluster, world.size, nodes(), memory_format(trainer.channels_last)),
            sources=sources,
        )

    def _ops(self) -> Table:
        """The known table with the works added that are needed and not in it."""
        known = self._known.compute.table if self._known and isinstance(self._known.compute, Measured) else None
        there: Mapping[Any, Timing] = known.ops.get(self._precision, {}) if known is not None else {}
        needs = {op: [need for need in of if (need.key, FORWARD) not in there]
                 for op, of in needed(self._graph, self._batch, self._world.size).items()}
        total = sum(map(len, needs.values()))
        self._show.phase(f"ops: {total} shapes to measure")
        ops, counts = self._rounds(passes(needs))
        count = sum(1 for _, name in ops if name == FORWARD)
        if total:
            self._show.note(f"measured {count} of {total} shapes; the others are predicted")
        curves = {kind: _merged(getattr(known, kind, {}), self._precision,
                                {n: s for (of, n), s in counts.items() if of == kind})
                  for kind in (UPDATE, ADD, COPY)}
        before = {} if known is None else dict(known.ops)
        source = (f"measured: means and quartiles of runs through the model, {self._at_once} workers of a node at "
                  "once, parameters and inputs as a step leaves them in the caches")
        return Table(before | {self._precision: {**there, **ops}}, curves[UPDATE], curves[ADD], curves[COPY],
                     memory_format(self._config.trainer.channels_last), source)

    def _rounds(self, todo: Sequence[Mapping[str, Need]]) -> tuple[dict[Any, Timing], dict[tuple[str, int], float]]:
        """Run through the model again and again until the budget is spent."""
        budget = self._settings.budget_s * (1 - LOADING - (0 if self._known else MESSAGES))
        ops: defaultdict[Any, list[float]] = defaultdict(list)
        counts: defaultdict[Any, list[float]] = defaultdict(list)
        steps = list[float]()
        for needs in todo[:1]:
            self._chain.run(needs)
            self._chain.times.collect()  # the first run is slower: it allocates
        self._whole.run()
        begin, rounds, done = time.perf_counter(), 0, len(todo)
        while rounds < REPEATS or self._elapsed(begin) < (budget if todo else LOADING * self._settings.budget_s):
            for i, needs in enumerate(todo[:done]):
                if rounds == 0 and i and self._elapsed(begin) > budget / REPEATS:
                    done = i
                    break
                if rounds >= REPEATS and self._elapsed(begin) > budget:
                    break
                self._world.barrier()
                if not self._computes:
                    continue
                self._chain.run(needs)
                found_ops, found_counts = self._chain.times.collect()
                for key, seconds in found_ops:
                    ops[key].append(seconds)
                for count, seconds in found_counts:
                    counts[count].append(seconds)
                self._show.done((time.perf_counter() - begin) / budget)
            rounds += 1
            self._world.barrier()
            if self._computes:
                steps.append(self._whole.run())
        self._steps = [seconds for of in self._world.gather(steps) for seconds in of]
        return ({key: _timing(seconds) for key, seconds in self._pooled(ops).items()},
                {key: _mean(seconds) for key, seconds in self._pooled(counts).items()})

    def _elapsed(self, begin: float) -> float:
        """The same on every worker."""
        return max(self._world.gather(time.perf_counter() - begin))

    def _pooled(self, own: Mapping[K, list[float]]) -> dict[K, list[float]]:
        pooled: defaultdict[K, list[float]] = defaultdict(list)
        for of in self._world.gather(dict(own)):
            for key, seconds in of.items():
                pooled[key] += seconds
        return pooled

    def _core_contention(self) -> tuple[float, ...]:
        """What `Cluster.core_contention` is: steps of the first 1, 2, … workers of every node, the others waiting."""
        if self._world.size == 1:
            return ()
        world, per_node = self._world, self._world.size // nodes()
        self._show.phase("workers beside each other")
        seconds: list[list[float]] = [[] for _ in range(per_node)]
        for _ in range(CROWD_ROUNDS):
            for count, of in enumerate(seconds, start=1):
                computes = world.rank % per_node < count
                world.barrier()
                own = self._whole.run() if computes else None
                of += [taken for taken in world.gather(own) if taken is not None]
        times = [_mean(of) for of in seconds]
        rising = IsotonicRegression().fit_transform(range(per_node), times)
        return tuple(_short(seconds / rising[self._at_once - 1]) for seconds in rising)

    def _messages(self, compute: Measured) -> tuple[Link, Link | None, float, dict[str, str]]:
        world, budget = self._world, MESSAGES * self._settings.budget_s
        if world.size == 1:
            numbers = SIZES[-1] // 4
            speed = _short(SIZES[-1] / compute.copy_s(numbers, self._precision))
            source = "of copying in memory: one worker sends no messages"
            return Link(0.0, ((1.0, speed),)), None, 0.0, {"inside.latency": source, "inside.bandwidth": source,
                                                           "overlap_slowdown": source}
        self._show.phase("messages")
        messages = Messages(world, Transport(world, Clock(world.device)))
        per_node, count = world.size // nodes(), nodes()
        by_node = [range(i * per_node, (i + 1) * per_node) for i in range(count)]
        node_of = {worker: i for i, of in enumerate(by_node) for worker in of}
        links: list[Link | None] = []
        sources: dict[str, str] = {}
        needs = needed(self._graph, self._batch, world.size)
        shares = {op: min(of, key=lambda need, whole=of[0]: abs(  # type: ignore[misc]
            need.key.elements_out - whole.key.elements_out / world.size)) for op, of in needs.items()}

        def model(between: Callable[[], None]) -> None:
            self._chain.run(shares, between)
            self._chain.times.collect()

        for name, chosen in (("inside", list(patterns(by_node[0]))), ("between", list(across(by_node)))):
            if not chosen:
                links.append(None)
                continue
            link, error = fit_link(self._points(messages, chosen, budget / (2 if count > 1 else 1)), node_of)
            waiting = waiting_s(messages, world, chosen, model, WAITING_ROUNDS)
            links.append(dataclasses.replace(link, latency_s=_short(max(link.latency_s, waiting))))
            self._show.note(f"messages {name}: the link's times are off by {error:.1%} on average")
            sources |= {f"{name}.latency": "measured: small messages after every pass of an op: workers part company",
                        f"{name}.bandwidth": f"measured: {', '.join(p.name for p in chosen)} of messages"}
        inside, between = links
        # Little and often, so that it lasts about as long as the message: the smallest work of a convolution, say.
        dense = max((of[0].key for of in needs.values()), key=lambda key: key.multiply_adds / (key.parameters + 1))
        small = min((need for of in needs.values() for need in of if need.key.head == dense.head),
                    key=lambda need: need.key.multiply_adds)

        def busy() -> None:
            self._chain.run({small.op: small})
            self._chain.times.collect()

        self._show.phase("computing beside messages")
        slowdown = overlap_slowdown(messages, world, busy, HIDDEN_ROUNDS)
        sources["overlap_slowdown"] = f"measured: {small.op} beside messages among all workers"
        if inside is None:
            if between is None:
                raise RuntimeError("neither inside nor between nodes are there two workers")
            inside, source = between, "as between nodes: a node has one worker, and nothing is sent inside it"
            sources |= {"inside.latency": source, "inside.bandwidth": source}
        return inside, between, slowdown, sources

    def _points(self, messages: Messages, chosen: Sequence[Pattern], budget: float) -> list[Point]:
        """Medians of all patterns at all sizes, in rounds until the budget is spent."""
        seconds: defaultdict[tuple[Pattern, int], list[float]] = defaultdict(list)
        begin, rounds = time.perf_counter(), 0
        while rounds < REPEATS or (rounds < MESSAGE_ROUNDS and self._elapsed(begin) < budget):
            for size in SIZES:
                for pattern in chosen:
                    seconds[pattern, size].append(messages.seconds(pattern, size))
            rounds += 1
            self._show.done(max(rounds / MESSAGE_ROUNDS, (time.perf_counter() - begin) / budget))
        return [Point(pattern, size, statistics.median(of)) for (pattern, size), of in seconds.items()]

    def _memory(self) -> int:
        total = memory_bytes()
        own = available_memory(self._world.device) or (total // (self._world.size // nodes()) if total else None)
        every = self._world.gather(own)
        require(all(every), "memory", None, "of this machine can't be found out")
        return min(of for of in every if of)


def nodes() -> int:
    """How many nodes torchrun started workers on."""
    return int(os.environ.get("WORLD_SIZE", "1")) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def memory_format(channels_last: bool) -> str:
    """As tables name it."""
    return "channels_last" if channels_last else "contiguous"


def _timing(seconds: Iterable[float]) -> Timing:
    values = list(seconds)
    low, high = (_short(value) for value in np.quantile(values, (0.25, 0.75)))
    return Timing(_mean(values), low, high, len(values))


def _mean(seconds: Sequence[float]) -> float:
    """Of the middle four fifths."""
    return _short(trim_mean(seconds, 0.1))


def _merged(known: Mapping[str, Curve], precision: str, found: Mapping[int, float]) -> dict[str, Curve]:
    """Known curves, with the points found for a precision: times that fall as counts rise are evened out."""
    points = sorted({**dict(known[precision].points if precision in known else ()), **found}.items())
    counts, seconds = np.array([n for n, _ in points]), np.array([s for _, s in points])
    smooth = np.exp(IsotonicRegression().fit_transform(np.log(counts), np.log(seconds)))
    return {**known, precision: Curve(tuple((int(n), _short(s)) for n, s in zip(counts, smooth, strict=True)))}


def _short(value: float) -> float:
    """Five digits: more than were measured, and short to read."""
    return float(f"{value:.5g}")
