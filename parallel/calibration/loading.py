"""Measure the time to load an image, and whether loading overlaps computing.

All workers run three loops: steps on one batch, loading batches, and both in turns, as in training.

    hidden     = loading + computing − both, in seconds per step
    overlaps     hidden ≥ half of the shorter one

If reading has a core of its own, or computing a GPU, the shorter one is nearly hidden behind the longer;
if both compete for the same cores, they add up. A shorter one that is less than `LEAST` of the other could
not be told from noise, and counts as not hidden.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

from parallel.calibration.setup import Setup
from parallel.calibration.stopwatch import Stopwatch, open_stopwatch
from parallel.data.loader import Batch, Loader, LoaderOptions
from parallel.program.precision import DTYPES

READ_AHEAD = 4
"""Batches that the loader may have prepared before a measurement; they are not counted."""
HIDDEN = 0.5
"""Share of the shorter time from which the two overlap: nearer to all of it than to nothing."""
LEAST = 0.02
"""Ratio of the shorter time to the longer one below which the answer is noise. A prediction that adds
them is then wrong by no more than this."""
LOOPS = 3
"""Loops that share the time budget."""


@dataclass(frozen=True)
class Loading:
    """How fast batches are loaded."""

    s_per_image: float
    overlaps: bool
    """Whether loading overlaps computing."""
    sentence: str
    """What was found."""


def hidden_share(loading_s: float, computing_s: float, both_s: float) -> float:
    """Return the share of the shorter of two times that is hidden when both are done: 1, if both take
    as long as the longer one, and 0, if they add up."""
    hidden_s = loading_s + computing_s - both_s
    return min(1.0, max(0.0, hidden_s / min(loading_s, computing_s)))


def measure_loading(setup: Setup, train: Callable[[Batch], None], batch: Batch, budget_s: float) -> Loading:
    """Measure loading while all workers load. The time of an image is the mean over the reference
    workers. `train` runs a step on a batch, which on a GPU it only enqueues."""
    watch = open_stopwatch(setup.world.device)
    positions = range(setup.local_batch)
    batches = endless(open_loader(setup, positions, positions))

    def seconds(step: Callable[[], object]) -> list[float]:
        for _ in range(READ_AHEAD):
            step()
        setup.world.barrier()
        return setup.world.gather(loop_s(watch, step, budget_s / LOOPS))

    loading = seconds(lambda: next(batches))
    computing = seconds(lambda: train(batch))
    both = seconds(lambda: train(next(batches)))
    batches.close()
    overlaps, sentence = loading_overlaps(*(statistics.fmean(of) for of in (loading, computing, both)))
    of_image = statistics.fmean(setup.of_references(loading)) / setup.local_batch
    return Loading(of_image, overlaps, sentence)


def loading_overlaps(loading_s: float, computing_s: float, both_s: float) -> tuple[bool, str]:
    """Return whether loading overlaps computing, from the seconds of a step of each loop, and a sentence
    that says why."""
    if min(loading_s, computing_s) < LEAST * max(loading_s, computing_s):
        return False, (
            f"loading takes {loading_s:.4g} s per step and computing {computing_s:.4g} s: too different to see "
            "whether they overlap, so their times are added"
        )
    hidden = hidden_share(loading_s, computing_s, both_s)
    return hidden >= HIDDEN, (
        f"loading takes {loading_s:.4g} s per step, computing {computing_s:.4g} s, and both {both_s:.4g} s: "
        f"{hidden:.0%} of the shorter time is hidden"
    )


def loop_s(watch: Stopwatch, step: Callable[[], object], budget_s: float) -> float:
    """Repeat `step` for about `budget_s`, and at least `READ_AHEAD` times; return the seconds of one,
    until the device has done all of them."""
    begin, started, count = watch.mark(), time.perf_counter(), 0
    while count < READ_AHEAD or time.perf_counter() - started < budget_s:
        step()
        count += 1
    return watch.seconds(begin, watch.mark()) / count


def endless(loader: Loader) -> Generator[Batch, None, None]:
    """Yield the batches of one epoch after another."""
    for epoch in itertools.count():
        yield from loader.epoch(epoch)


def open_loader(setup: Setup, images: Sequence[int], labels: Sequence[int]) -> Loader:
    """Return a loader of training batches of this worker alone."""
    options = LoaderOptions.from_config(setup.config, setup.data, DTYPES[setup.precision])
    return Loader(
        setup.data.train,
        replace(options, batch_size=setup.local_batch),
        train=True,
        image_positions=images,
        label_positions=labels,
        device=setup.world.device,
    )
