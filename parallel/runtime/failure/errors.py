"""How a run ends that cannot go on: in one sentence that names a worker, a step and, where it is known, an op."""

from __future__ import annotations


class RunEnded(Exception):
    """The run ends on every worker, without a fault of this program that a traceback would show."""


class WorkerLost(RunEnded):
    """Another worker died, hangs or failed, or cannot be reached."""

    def __init__(self, sentence: str, reachable: bool = True) -> None:
        """`reachable`: whether the store by which the workers speak outside the process group still answers."""
        super().__init__(sentence)
        self.reachable = reachable


class NotFinite(RunEnded):
    """The loss, or what it comes from, is infinite or not a number."""
