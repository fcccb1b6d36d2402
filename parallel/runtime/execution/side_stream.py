"""A stream beside the one that computes, on which shards are updated as soon as they are summed.

A GPU runs the kernels of one stream in order, and those of different streams at the same time unless an
event orders them. With c the compute stream, s the side stream and n the stream of NCCL's communicator,
bucket b takes

    c   copies b's gradients to their places; n waits for c: b's sum             reduce_scatter
    s   waits for n; updates the shard; n waits for s: b's gather                 run
    c   waits for n where the next forward reads b's weights                      finish_gather

The host waits for nothing. What each tensor is safe by:

    weights    written by s after c has used them: all kernels of backward that read the weights of an op are in
               c before those that complete its gradients, and so before the sum
    gradients  written by c in the next backward, after the forward in which c waited for the gather, and so
               for s; read by s after the sum
    momentum   read and written by s; by c only after `wait_for_weights`. So are the weights of a shard that are
               kept beside rounded ones
    memory     belongs to the bucket for the whole run, so the allocator gives it to no other tensor, and
               `record_stream` is not needed
"""

from __future__ import annotations

from collections.abc import Callable

import torch


class SideStream:
    """The side stream of a GPU."""

    def __init__(self, device: torch.device) -> None:
        # Updates are short: without priority they would queue behind blocks of backward's kernels.
        self._stream = torch.cuda.Stream(device, priority=-1)

    def run(self, work: Callable[[], None]) -> None:
        """Run `work` now, with its kernels and waits on the side stream."""
        with torch.cuda.stream(self._stream):
            work()


def open_side_stream(device: torch.device) -> SideStream | None:
    """Return a side stream; None on a CPU, where updates wait for the end of the backward pass."""
    return SideStream(device) if device.type == "cuda" else None
