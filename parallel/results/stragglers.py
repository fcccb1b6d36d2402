"""Stragglers of a run: workers that were slower than others with the same part of the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from parallel.config import require, require_number, require_one_of
from parallel.config.checks import MOST_SECONDS, MOST_STEPS, MOST_WORKERS

SLOWER = {
    "loading": "waits longer for its data than workers that load as many images",
    "forward": "is slower in forward than workers with the same part",
    "backward": "is slower in backward than workers with the same part",
    "messages": "is slower in its messages than workers that send as much",
}
"""Predicate of the sentence about a worker, by the cause of the delay."""


@dataclass(frozen=True, kw_only=True)
class Straggler:
    """A worker that was slower than others with the same part, and why."""

    worker: int
    host: str | None = None
    """Name of its host. None: all workers ran on one host."""
    cause: str
    """loading, forward, backward or messages."""
    lost_s: float
    """Seconds per step beyond those of the other workers, a mean over `epochs`."""
    share: float
    """`lost_s` as a fraction of the time of a step."""
    epochs: tuple[int, ...]
    """Epochs in which it lost this time."""

    def __post_init__(self) -> None:
        require_number("worker", self.worker, 0, MOST_WORKERS - 1)
        require_one_of("cause", self.cause, tuple(SLOWER))
        require(0 < self.lost_s <= MOST_SECONDS, "lost_s", self.lost_s, "must be a time above 0 s")
        require(0 < self.share <= 1, "share", self.share, "must be a fraction above 0, at most 1")
        require(len(self.epochs) >= 1, "epochs", self.epochs, "must name at least one epoch")
        for epoch in self.epochs:
            require_number("epochs", epoch, 1, MOST_STEPS)
        ascending = all(before < after for before, after in pairwise(self.epochs))
        require(ascending, "epochs", self.epochs, "must ascend")

    def sentence(self, epochs: int) -> str:
        """Return one sentence about it, in a run of `epochs` epochs."""
        host = "" if self.host is None else f" on host {self.host}"
        when = "" if len(self.epochs) == epochs else f", in {_named(self.epochs)} of {epochs}"
        return (
            f"worker {self.worker}{host} {SLOWER[self.cause]}: {1000 * self.lost_s:.3g} ms a step, "
            f"{100 * self.share:.0f} % of the time{when}"
        )


def _named(epochs: Sequence[int]) -> str:
    """Return numbers of epochs with runs of them in short: "epochs 1 to 3, 7"."""
    runs: list[list[int]] = []
    for epoch in epochs:
        if runs and runs[-1][1] == epoch - 1:
            runs[-1][1] = epoch
        else:
            runs.append([epoch, epoch])
    texts = [str(first) if first == last else f"{first} to {last}" for first, last in runs]
    return f"epoch{'s' * (len(epochs) > 1)} {', '.join(texts)}"
