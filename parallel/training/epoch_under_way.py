"""The epoch under way: its time, and what a checkpoint in it keeps."""

from __future__ import annotations

import time
from dataclasses import replace

from torch import Tensor

from parallel.checkpoints.manifest import Begun
from parallel.runtime.execution.engine import Engine


class EpochUnderWay:
    """The part of an epoch that this worker has trained."""

    def __init__(self, engine: Engine, begun: Begun | None) -> None:
        """`begun`: what was trained before this run started, which one worker adds to its own part."""
        self._engine, self._begun = engine, begun
        self._sent_before = engine.bytes_sent
        self._begin = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time since the begin of the epoch."""
        return time.perf_counter() - self._begin

    @property
    def bytes_sent(self) -> int:
        """Bytes that this worker has sent since."""
        return self._engine.bytes_sent - self._sent_before

    def after(self, done: int, total: Tensor) -> Begun:
        """Return the part after `done` steps with this sum of losses."""
        loss = total.item()  # waits for the device, so that the time is that of the steps done
        now = Begun(steps=done, seconds=self.seconds, loss=loss, bytes_sent=self.bytes_sent)
        if self._begun is None:
            return now
        return replace(
            now,
            seconds=self._begun.seconds + now.seconds,
            loss=self._begun.loss + now.loss,
            bytes_sent=self._begun.bytes_sent + now.bytes_sent,
        )
