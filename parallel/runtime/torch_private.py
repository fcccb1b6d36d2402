"""Private interfaces of torch, each with the reason why no public one serves.

`tests/unit/test_torch_private.py` fails when one of them disappears.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import ErrorType
from torch.distributed.distributed_c10d import _abort_process_group


def profiler_is_active() -> bool:
    """Return whether torch's profiler is recording.

    `torch.profiler.record_function` takes some 10 µs even when no profiler is active, and there is
    no public way to ask for one.
    """
    return torch.autograd._profiler_enabled()


def abort_process_groups() -> None:
    """Abort all process groups of this worker, if there are any. They can't be used afterwards.

    `ProcessGroup.abort` is public, but there is no public list of the groups, which tools beside ours
    create, too; and NCCL's communicators must be aborted in one group of calls.
    """
    if dist.is_initialized():
        _abort_process_group()


def communicator_error(device: torch.device) -> str:
    """Return what NCCL's communicator of all workers has noticed: a failure, or that a message timed out; ""
    if nothing, also after it was destroyed.

    torch has no public way to ask for it but to wait for a message. Where this one is missing, the watch still
    notices that a worker is silent.
    """
    group = dist.group.WORLD
    if group is None:
        return ""
    ask: Any = getattr(group._get_backend(device), "get_error", None)
    error = ErrorType.SUCCESS if ask is None else ask()
    if error == ErrorType.SUCCESS:
        return ""
    return "NCCL: a message timed out" if error == ErrorType.TIMEOUT else "NCCL's communicator has failed"


def spin_device(cycles: int) -> None:
    """Enqueue a kernel that spins for a number of the GPU's cycles.

    It keeps the GPU busy for a known time without touching memory, caches or libraries, which no public
    operation does: a matrix product of this length would replace what an op finds in the caches.
    """
    torch.cuda._sleep(cycles)
