"""Errors of a GPU and of NCCL on one worker, each as the sentence that this worker is to blame with.

torch's texts have several lines: where in its sources the error was noticed, advice, links. An error of NCCL
that another worker may have caused is none of these: the watch finds out who.
"""

from __future__ import annotations

import re

import torch
from torch.distributed import DistBackendError

from parallel.runtime.failure.errors import InstructionFailed

LOCAL_NCCL = ("ncclUnhandledCudaError", "ncclSystemError", "ncclInvalidArgument", "ncclInvalidUsage")
"""Results of NCCL that one worker has by itself."""
REMOTE = re.compile(r"remote (peer|process)|connect|reset by peer|abort|timed? ?out", re.IGNORECASE)
"""Words of a system error that another worker may have caused: its end closes connections."""
RESULT = re.compile(r"^(nccl\w+):(?: (.*))?$", re.MULTILINE)
LAST = re.compile(r"Last error: *\n?(.+)")
LATE = ("device-side assert", "illegal", "misaligned", "launch failure", "launch timed out")
"""Errors of kernels, which the host notices later."""
DEVICE = ("CUDA error", "cuDNN error", "HIP error")
"""Beginnings of errors of a device that have no class of their own."""


def describe_device_error(error: BaseException) -> str | None:
    """Return an error of this worker's device in a sentence; None: it is no such error, or perhaps
    another worker's."""
    if isinstance(error, InstructionFailed) and (cause := error.__cause__) is not None:
        described = describe_device_error(cause)
        instruction, _, _ = error.sentence.partition(f": {type(cause).__name__}")
        return described and f"{instruction}: {described}"
    text = str(error).strip() or type(error).__name__
    if isinstance(error, torch.OutOfMemoryError):
        return f"{_out_of_memory(text)}; a smaller trainer.batch_size needs less"
    if isinstance(error, DistBackendError):
        return _of_nccl(text)
    if isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and text.startswith(DEVICE)
    ):
        first = text.splitlines()[0].strip()
        if any(word in first for word in LATE):
            return f"{first} (noticed later than it happened: CUDA_LAUNCH_BLOCKING=1 shows the op)"
        return first
    return None


def _out_of_memory(text: str) -> str:
    """Return torch's first sentences: that memory is short, what was asked for, what the GPU has."""
    kept = []
    for sentence in re.split(r"\. (?=[A-Z])", text.splitlines()[0]):
        if sentence.startswith(("Including", "Of the allocated", "Process", "If reserved", "See")):
            break
        kept.append(sentence.rstrip("."))
    return ": ".join([kept[0], ", ".join(kept[1:])]).rstrip(": ")


def _of_nccl(text: str) -> str | None:
    """Return NCCL's error in words, if no other worker can have caused it."""
    result = RESULT.search(text)
    if result is None or result[1] not in LOCAL_NCCL:
        return None
    last = LAST.search(text)
    detail = (last[1] if last else result[2] or "").strip()
    if result[1] == "ncclSystemError" and (last is None or REMOTE.search(detail)):
        return None
    return f"NCCL: {result[1]}: {detail} (NCCL_DEBUG=INFO tells more)"
