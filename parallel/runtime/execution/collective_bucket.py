"""A bucket that is summed by the backend's reduce-scatter and gathered by its all-gather (NCCL).

    start_sync    copy the gradients to their places in the flattened bucket, and start to sum it
    finish_sync   this worker's shard is summed
    start_gather  start to gather the updated shards, in place

Weights and gradients of the bucket keep their memory for the whole run, so a collective on another stream
never has memory that the allocator gives to someone else. Their padding stays zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from parallel.program import Bucket
from parallel.runtime.communication.exchange import Format
from parallel.runtime.communication.transport import Transport
from parallel.runtime.communication.world import World
from parallel.runtime.execution.held_bucket import HeldBucket, ParameterName


class CollectiveBucket(HeldBucket):
    """One bucket on one worker."""

    def __init__(
        self,
        bucket: Bucket,
        weights: Mapping[ParameterName, Tensor],
        form: Format,
        activations: torch.dtype,
        world: World,
        transport: Transport,
    ) -> None:
        super().__init__(bucket, weights, form, activations, world, transport)
        self._gradients = self._memory(form.dtype)
        self._gradient_views = self.views(self._gradients)

    def _common_memory(self, transport: Transport) -> Tensor | None:
        return None

    def start_sync(self, transport: Transport) -> None:
        with torch.no_grad():
            gradients = [self._gradient_of(parameter) for parameter in self.parameters.values()]
            torch._foreach_copy_(self._gradient_views, gradients)  # one kernel for all of them
        self.clear()  # their memory is free for the rest of backward
        self.gradient = self._gradients[slice(*self.bucket.shard(self._rank))]
        key = "sum", self.bucket.index
        self._message = transport.reduce_scatter(key, self.bucket.workers, self._gradients)

    def finish_sync(self, transport: Transport) -> None:
        if self._message is not None:
            with transport.messaging():
                transport.wait(self._message)
            self._message = None

    def finish_sync_on_stream(self, transport: Transport) -> None:
        """Make the current stream wait for the sum, but not this worker."""
        if self._message is not None:
            transport.wait_on_stream(self._message)
            self._message = None

    def start_gather(self, transport: Transport) -> None:
        key = "gather", self.bucket.index
        self._gather = transport.all_gather(key, self.bucket.workers, self._flat)
