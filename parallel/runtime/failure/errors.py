"""Errors that end a run on every worker, each in one sentence that names a worker and a step."""

from __future__ import annotations


class RunEnded(Exception):
    """The run cannot continue for a reason outside the program, so no traceback is shown."""


class WorkerLost(RunEnded):
    """Another worker died, hangs, failed or cannot be reached."""

    def __init__(self, sentence: str, reachable: bool = True) -> None:
        """`reachable`: whether the store outside the process group still answers."""
        super().__init__(sentence)
        self.reachable = reachable


class InputRefused(WorkerLost):
    """Another worker rejected its input."""


class DeviceFailed(RunEnded):
    """This worker's GPU failed, or its memory is short."""

    def __init__(self, who: str, sentence: str) -> None:
        """`who`: this worker, and the place where it failed."""
        super().__init__(f"{who}: {sentence}")
        self.sentence = sentence


class RunStopped(RunEnded):
    """The workers were asked to end, and saved their state. Not a failure of any of them."""


class InstructionFailed(Exception):
    """An instruction of a worker's program raised; shown with the worker's schedule around it."""

    def __init__(self, sentence: str, schedule: str) -> None:
        super().__init__(f"{sentence}\n{schedule}")
        self.sentence = sentence
        """Names the instruction and the error."""


class NotFinite(RunEnded):
    """The loss, or a tensor that it is computed from, is infinite or NaN."""
