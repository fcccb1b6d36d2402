"""Errors and messages of a run in words, and which errors come from the process group."""

from __future__ import annotations

from collections.abc import Sequence

from torch.distributed import DistError

from parallel.runtime.failure.device_errors import describe_device_error
from parallel.runtime.failure.errors import DeviceFailed, InstructionFailed, RunEnded


def describe_error(error: BaseException) -> str:
    """Return what the error says, in one line."""
    if (device := describe_device_error(error)) is not None:
        return device
    match error:
        case DeviceFailed():
            return error.sentence
        case RunEnded():
            return str(error)
        case InstructionFailed():
            return error.sentence
    return f"{type(error).__name__}: {error}".rstrip(": ")


def describe_message(key: Sequence[object]) -> str:
    """Return what the message with this key carries, in words."""
    match key:
        case (int(), int(), ">" | "<" as way):
            return f"exchange {key[0]} of micro-batch {key[1]}, {'forward' if way == '>' else 'backward'}"
        case ("sum", int()):
            return f"gradients of bucket {key[1]}"
        case ("gather", int()):
            return f"weights of bucket {key[1]}"
        case ("sum" | "gather", int(), "within" | "between" as level, *_):
            where = "within the host" if level == "within" else "between hosts"
            return f"{describe_message(key[:2])}, {where}"
    return " ".join(map(str, key))


def is_about_peers(error: RuntimeError) -> bool:
    """Return whether the error comes from the process group.

    gloo's errors have no class of their own but quote paths of its sources.
    """
    return isinstance(error, DistError) or "gloo" in str(error) or "pair closure" in str(error)
