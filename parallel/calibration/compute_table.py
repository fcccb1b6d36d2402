"""Measure the times of ops, updates, additions and copies: the table of a calibrated cluster.

Runs through the model repeat in rounds, each followed by a whole step, so that the samples of each
shape are spread over the whole time and a disturbance affects all shapes alike. The workers decide
together when to stop, since they must run the same ops at the same time.
"""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from sklearn.isotonic import IsotonicRegression

from parallel.calibration.launches import Pass, cost, launch_scale
from parallel.calibration.op_times import ADD, COPY, UPDATE, OpTimer
from parallel.calibration.samples import rounded, timing, trimmed_mean
from parallel.calibration.setup import Setup
from parallel.calibration.shapes import OpShape, model_runs, op_shapes
from parallel.calibration.step_overhead import IsolatedStep, step_passes
from parallel.cluster import Measured
from parallel.cluster.machine import memory_format
from parallel.cluster.op_key import OpKey
from parallel.cluster.roofline import is_view
from parallel.cluster.table import FORWARD, Curve, Ops, Table, Timing
from parallel.config import require

MESSAGES_SHARE, LOADING_SHARE = 0.2, 0.03
"""Shares of the time budget for messages and loading; ops get the rest."""
MINIMUM_ROUNDS = 3
"""A shape measured fewer times is left to the regression."""


@dataclass
class Samples:
    """Seconds by (op key, pass) and by (kind, number of elements), and of whole steps."""

    ops: defaultdict[Pass, list[float]] = field(default_factory=lambda: defaultdict(list))
    counts: defaultdict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    steps: list[float] = field(default_factory=list)
    launches: defaultdict[Pass, list[float]] = field(default_factory=lambda: defaultdict(list))
    """The host's seconds to launch the passes."""
    step_launches: list[float] = field(default_factory=list)
    """The host's seconds to launch whole steps."""

    def collect(self, timer: OpTimer) -> None:
        """Add the times that the timer has recorded."""
        ops, counts, launches = timer.times.collect()
        for key, seconds in ops:
            self.ops[key].append(seconds)
        for count, seconds in counts:
            self.counts[count].append(seconds)
        for key, seconds in launches:
            self.launches[key].append(seconds)


def measure_compute(setup: Setup, timer: OpTimer, step: IsolatedStep) -> tuple[Table, float]:
    """Return the table with all shapes that were missing, and the mean seconds of a step."""
    known = setup.known.compute.table if setup.known and isinstance(setup.known.compute, Measured) else None
    present: Ops = known.ops.get(setup.precision, {}) if known is not None else {}
    missing = {
        op: [shape for shape in shapes if (shape.key, FORWARD) not in present]
        for op, shapes in op_shapes(setup.graph, setup.batch_size, setup.world.size).items()
    }
    total = sum(map(len, missing.values()))
    setup.progress.phase(f"ops: {total} shapes to measure")
    samples = _measure_rounds(setup, timer, step, model_runs(missing))
    ops = _costs(setup, samples, step)
    require(
        len(ops) > 0 or len(present) > 0,
        "calibrate.budget_s",
        setup.options.budget_s,
        "is too short: no op was measured, or the device waited for the host in all of them",
    )
    counts = {key: trimmed_mean(seconds) for key, seconds in setup.pooled(samples.counts).items()}
    if total:
        measured = sum(1 for _, name in ops if name == FORWARD)
        setup.progress.note(f"measured {measured} of {total} shapes; the others are predicted")
    curves = {
        kind: _merged(
            getattr(known, kind, {}),
            setup.precision,
            {count: seconds for (own, count), seconds in counts.items() if own == kind},
        )
        for kind in (UPDATE, ADD, COPY)
    }
    before = {} if known is None else dict(known.ops)
    source = (
        "measured: means and quartiles of runs through the model, "
        f"{setup.computing_per_node} workers of a node at once, parameters and inputs "
        "as a step leaves them in the caches" + (", on workers of speed 100 %" if setup.speeds else "")
    )
    table = Table(
        before | {setup.precision: {**present, **ops}},
        curves[UPDATE],
        curves[ADD],
        curves[COPY],
        memory_format(setup.config.trainer.channels_last),
        source,
    )
    steps = setup.of_references(setup.world.gather(samples.steps))
    return table, trimmed_mean([seconds for own in steps for seconds in own])


def _costs(setup: Setup, samples: Samples, step: IsolatedStep) -> dict[Pass, Timing]:
    """Return the costs of all passes that were measured, from the samples of all workers."""
    every = _pooled(setup, samples.ops)
    if not step.launches:
        return {key: timing(seconds) for key, seconds in every.items()}
    launches = _pooled(setup, samples.launches)
    of_steps = [
        seconds for own in setup.of_references(setup.world.gather(samples.step_launches)) for seconds in own
    ]
    passes = [
        (OpKey.of(op, part), name)
        for op, part, name in step_passes(setup.graph, setup.local_batch)
        if not is_view(op)
    ]
    launch_s = trimmed_mean(of_steps)
    scale = launch_scale(launch_s, passes, launches)
    setup.progress.note(
        f"the host launches a step in {launch_s:.4f} s; the launches of its ops by themselves take "
        f"{1 / scale:.0%} of that"
    )
    return {key: cost(seconds, launches[key], scale) for key, seconds in every.items()}


def _pooled(setup: Setup, own: Mapping[Pass, list[float]]) -> dict[Pass, list[float]]:
    """Return the samples of all reference workers by pass."""
    plain = {(dataclasses.astuple(key), name): seconds for (key, name), seconds in own.items()}
    return {(OpKey(*key), name): seconds for (key, name), seconds in setup.pooled(plain).items()}


def _measure_rounds(
    setup: Setup, timer: OpTimer, step: IsolatedStep, runs: Sequence[Mapping[str, OpShape]]
) -> Samples:
    """Repeat the runs through the model until the budget is spent.

    The first round stops once it has used its share of the budget; the runs that it did not reach
    are left out.
    """
    share = 1 - LOADING_SHARE - (0 if setup.known else MESSAGES_SHARE)
    budget = share * setup.options.budget_s
    samples = Samples()
    for shapes in runs[:1]:
        timer.run(shapes)
        timer.times.collect()  # the first run is slower: it allocates
    step.run()
    begin, rounds, reached = time.perf_counter(), 0, len(runs)

    def elapsed() -> float:
        return setup.slowest(time.perf_counter() - begin)

    while rounds < MINIMUM_ROUNDS or elapsed() < (budget if runs else LOADING_SHARE * setup.options.budget_s):
        for i, shapes in enumerate(runs[:reached]):
            if rounds == 0 and i and elapsed() > budget / MINIMUM_ROUNDS:
                reached = i
                break
            if rounds >= MINIMUM_ROUNDS and elapsed() > budget:
                break
            setup.world.barrier()
            if setup.computes:
                timer.run(shapes)
                samples.collect(timer)
                setup.progress.done((time.perf_counter() - begin) / budget)
        rounds += 1
        setup.world.barrier()
        if setup.computes:
            samples.steps.append(step.run())
            if step.launches:
                samples.step_launches.append(step.launch_s())
    return samples


def _merged(known: Mapping[str, Curve], precision: str, found: Mapping[int, float]) -> dict[str, Curve]:
    """Return the known curves with the points found, made non-decreasing."""
    points = sorted({**dict(known[precision].points if precision in known else ()), **found}.items())
    counts, seconds = np.array([n for n, _ in points]), np.array([s for _, s in points])
    smooth = np.exp(IsotonicRegression().fit_transform(np.log(counts), np.log(seconds)))
    evened = tuple((int(n), rounded(s)) for n, s in zip(counts, smooth, strict=True))
    return {**known, precision: Curve(evened)}
