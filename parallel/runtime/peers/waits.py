"""Tells the watch when a tool waits for the other workers, which the watch cannot see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from parallel.runtime.failure.null_watch import NullWatch
from parallel.runtime.instrumentation.clock import Clock
from parallel.runtime.instrumentation.phases import Phase


@dataclass
class Waits:
    """Every tool may wait before the model's forward, for buckets and buffers, and after the last
    gradient, for the sums. The clock is told of the end of backward."""

    watch: NullWatch
    clock: Clock
    tool: str
    expected: int = 0
    """Gradients that backward has yet to compute."""

    def forward_called(self) -> None:
        self.watch.waits((f"buckets inside {self.tool}",), -1)

    def forward_begins(self, *_: object) -> None:
        self.watch.goes_on()

    def gradient_computed(self, _: Tensor) -> None:
        self.expected -= 1
        if self.expected == 0:
            self.clock.phases.lap(Phase.BACKWARD)
            self.watch.waits((f"gradients inside {self.tool}",), -1)

    def for_weights(self, *_: object) -> None:
        """Note that the tool waits for weights of other workers."""
        self.clock.phases.enter(Phase.WAITING)
        self.watch.waits((f"weights inside {self.tool}",), -1)

    def have_weights(self, *_: object) -> None:
        """Note that the weights of a layer have come, in a forward."""
        self.clock.phases.enter(Phase.FORWARD)
        self.watch.goes_on()

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Note an update after which the tool waits for weights."""
        self.watch.waits((f"weights inside {self.tool}",), -1)
        yield
        self.watch.goes_on()
