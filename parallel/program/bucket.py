"""Buckets: parameters whose gradients are summed together, cut into a shard for each worker."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

from parallel.graph.box import Box, Span, cut
from parallel.program.levels import Hosts, Levels
from parallel.program.precision import SYNC_BYTES

ALIGNMENT = 32
"""Elements to which the parameters and shards of a collective are aligned: 128 bytes of float32, a line
of a GPU's cache, and 64 of bf16. Kernels for matrices need 16 bytes, and choose slower variants for less."""


@dataclass(frozen=True)
class Bucket:
    """Parameters whose gradients are summed together: the same workers hold the same boxes of
    them."""

    index: int
    parameters: tuple[tuple[str, str], ...]
    """Pairs of op and parameter."""
    boxes: tuple[Box, ...]
    """Box of each parameter that the workers hold."""
    workers: tuple[int, ...]
    hosts: Hosts = ()
    """The workers by host if the bucket is summed in levels (`levels`). Empty: every worker sends its
    gradients of each shard to the worker that updates it, and its updated shard to all others."""
    collective: bool = False
    """Whether it is summed by a reduce-scatter of the backend and gathered by its all-gather, of equal
    shards: the parameters are aligned, and the last shard ends in padding."""
    rounded: bool = False
    """Whether all its parameters are read rounded to the dtype of activations (`Op.rounds_parameters`). Its
    workers then hold and gather them in that dtype, and each keeps the weights of its shard unrounded."""

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First element of each parameter in the flattened bucket."""
        align = ALIGNMENT if self.collective else 1
        ends = itertools.accumulate((-(-box.volume // align) * align for box in self.boxes[:-1]), initial=0)
        return tuple(ends)

    @cached_property
    def size(self) -> int:
        """Elements of the flattened bucket up to its last parameter."""
        return self.offsets[-1] + self.boxes[-1].volume

    @cached_property
    def padded(self) -> int:
        """Elements of the flattened bucket in memory."""
        return self._even_shard * len(self.workers) if self.collective else self.size

    @cached_property
    def _even_shard(self) -> int:
        """Elements of each shard of a collective."""
        return -(-self.size // (len(self.workers) * ALIGNMENT)) * ALIGNMENT

    @cached_property
    def levels(self) -> Levels | None:
        """How the bucket is cut if it is summed in levels."""
        return Levels(self.size, self.hosts) if self.hosts else None

    def shard(self, worker: int) -> Span:
        """Return the span of the flattened bucket that `worker` updates, padding included."""
        if self.levels is not None:
            return self.levels.shard(worker)
        index = self.workers.index(worker)
        if self.collective:
            return index * self._even_shard, (index + 1) * self._even_shard
        return cut(self.size, len(self.workers), index)

    def sum_bytes(self, itemsize: int) -> int:
        """Return the bytes per element of a gradient that is sent; activations have `itemsize`."""
        return max(SYNC_BYTES, itemsize)

    def gather_bytes(self, itemsize: int) -> int:
        """Return the bytes per element of a weight that is sent; activations have `itemsize`."""
        return itemsize if self.rounded else max(SYNC_BYTES, itemsize)

    def sums(self, worker: int) -> tuple[int, int]:
        """Return the elements that `worker` sends and receives to sum the gradients.

        To gather the updated weights, it sends as many as it receives here, and the reverse. A
        collective is counted as a ring.
        """
        if self.levels is not None:
            return self.levels.sums(worker)
        start, stop = self.shard(worker)
        return self.padded - (stop - start), (stop - start) * (len(self.workers) - 1)
