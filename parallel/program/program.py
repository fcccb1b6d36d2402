"""Programs: a plan lowered to a list of steps for each worker, backward included.

A *segment* is a run of ops on the same workers with no exchange between them. The steps of a worker
are

    F2:1    forward of segment 2 for micro-batch 1 (F2: for all micro-batches at once)
    B2:1    its backward; `sync` names the buckets whose gradients it completes and starts to sum
    X3:1>   start exchange 3 of micro-batch 1, forward; <X3:1 starts its transpose in the backward pass
    W3:1>   wait for exchange 3 of micro-batch 1, forward; <W3:1 waits for its transpose
    U4      wait for the summed gradients of bucket 4, then update its parameters

All workers follow one global order, each running the steps that concern it, so no plan can
deadlock.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from parallel.graph import LOSS, Graph
from parallel.graph.box import Box, Span, cut
from parallel.graph.ops import Part
from parallel.plans import Plan
from parallel.program.levels import Hosts, Levels
from parallel.program.precision import SYNC_BYTES, WIDE_BYTES
from parallel.program.schedule import Task

ALIGNMENT = 32
"""Elements to which the parameters and shards of a collective are aligned: 128 bytes of float32, a line
of a GPU's cache, and 64 of bf16. Kernels for matrices need 16 bytes, and choose slower variants for less."""


@dataclass(frozen=True)
class Segment:
    """A run of ops that its workers compute without communication."""

    index: int
    ops: tuple[str, ...]
    workers: frozenset[int]
    merged: bool
    """Whether it runs once a step for all micro-batches together (the data-parallel ops of schemes
    b and c)."""


@dataclass(frozen=True)
class Transfer:
    """A box of a tensor that moves from one worker to another, or stays on one (source =
    target)."""

    source: int
    target: int
    box: Box


@dataclass(frozen=True)
class Exchange:
    """Move the output of op `value`, for one micro-batch, from the boxes held to the boxes needed.

    Backward is the transpose: every box returns to where it came from, and overlaps add up.
    """

    index: int
    micro_batch: int
    value: str
    consumer: str
    holds: Mapping[int, Box]
    needs: Mapping[int, Box]
    adds: bool
    """Whether the boxes held are partial sums, which the forward direction adds where they
    overlap."""
    wide: bool = False
    """Whether it moves float64 with any precision: the statistics of a batch normalisation."""

    @cached_property
    def transfers(self) -> tuple[Transfer, ...]:
        """All non-empty intersections of a box held with a box needed."""
        pairs = (
            (source, target, held & need)
            for source, held in self.holds.items()
            for target, need in self.needs.items()
        )
        return tuple(Transfer(source, target, box) for source, target, box in pairs if not box.empty)

    @cached_property
    def moved(self) -> tuple[Mapping[int, int], Mapping[int, int]]:
        """Elements that each worker sends to others, and that each receives; backward swaps the
        two."""
        # Shapes [workers, dims, 2].
        held, needed = (
            np.array([boxes[worker].spans for worker in boxes], dtype=np.int64)
            for boxes in (self.holds, self.needs)
        )
        overlaps = np.ones((len(held), len(needed)), dtype=np.int64)
        for d in range(held.shape[1]):  # one matrix of all pairs per dim: 1,024 workers make a million pairs
            stops = np.minimum(held[:, None, d, 1], needed[None, :, d, 1])
            overlaps *= np.maximum(0, stops - np.maximum(held[:, None, d, 0], needed[None, :, d, 0]))
        sources, targets = np.array(list(self.holds)), np.array(list(self.needs))
        overlaps[sources[:, None] == targets[None, :]] = 0
        return (
            dict(zip(self.holds, overlaps.sum(axis=1).tolist(), strict=True)),
            dict(zip(self.needs, overlaps.sum(axis=0).tolist(), strict=True)),
        )

    @cached_property
    def workers(self) -> frozenset[int]:
        """Workers that hold or need a part."""
        return frozenset(self.holds) | frozenset(self.needs)

    @property
    def name(self) -> str:
        """Name as `producer>consumer`."""
        return f"{self.value}>{self.consumer}"

    def itemsize(self, itemsize: int) -> int:
        """Return the bytes per element that it moves; activations have `itemsize`."""
        return WIDE_BYTES if self.wide else itemsize


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


@dataclass(frozen=True)
class Forward:
    """Forward of a segment for a micro-batch; None: for all of them."""

    segment: int
    micro_batch: int | None

    def __str__(self) -> str:
        return f"F{self.segment}" + ("" if self.micro_batch is None else f":{self.micro_batch}")


@dataclass(frozen=True)
class Backward:
    """Backward of a segment for a micro-batch; it starts to sum the gradients of the buckets in
    `sync`."""

    segment: int
    micro_batch: int | None
    sync: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"B{self.segment}" + ("" if self.micro_batch is None else f":{self.micro_batch}")


@dataclass(frozen=True)
class Start:
    """Start of an exchange for a micro-batch, in either direction."""

    exchange: int
    micro_batch: int
    backward: bool

    def __str__(self) -> str:
        name = f"X{self.exchange}:{self.micro_batch}"
        return f"<{name}" if self.backward else f"{name}>"


@dataclass(frozen=True)
class Wait:
    """Wait for an exchange of a micro-batch, in either direction."""

    exchange: int
    micro_batch: int
    backward: bool

    def __str__(self) -> str:
        name = f"W{self.exchange}:{self.micro_batch}"
        return f"<{name}" if self.backward else f"{name}>"


@dataclass(frozen=True)
class Update:
    """Wait for the summed gradients of a bucket, then update its parameters."""

    bucket: int

    def __str__(self) -> str:
        return f"U{self.bucket}"


Step = Forward | Backward | Start | Wait | Update


@dataclass(frozen=True)
class Sent:
    """Bytes that one worker sends in a step, by purpose."""

    forward: int
    """Exchanges of the forward pass."""
    backward: int
    """Transposed exchanges of the backward pass."""
    sums: int
    """Gradients, sent to the workers that update them."""
    gathers: int
    """Updated weights, sent to the workers that hold them."""

    @property
    def total(self) -> int:
        """All bytes."""
        return self.forward + self.backward + self.sums + self.gathers


@dataclass(frozen=True)
class Program:
    """The steps of every worker in one optimizer step. `lowering.lower` builds it."""

    graph: Graph
    plan: Plan
    batch_size: int
    segments: tuple[Segment, ...]
    exchanges: Mapping[tuple[int, int], Exchange]
    """By index and micro-batch."""
    buckets: tuple[Bucket, ...]
    merged: frozenset[str]
    """Ops of merged segments."""
    fused: frozenset[str]
    """Ops that are not computed by themselves: the op that reads one computes both (`Op.fuses`)."""
    order: tuple[Task, ...]
    """Global order of all forwards and backwards; `steps` are its projection onto each worker."""
    steps: tuple[tuple[Step, ...], ...]
    """Steps by worker."""

    def part(self, op: str, worker: int, micro_batch: int) -> Part | None:
        """Return the part of `op` that `worker` computes for a micro-batch; None if it has none."""
        layout = self.plan[op]
        if worker not in layout.on:
            return None
        samples = cut(self.batch_size, self.plan.micro_batches, micro_batch)
        if op in self.merged and self.plan.scheme == "b":  # pass i consists of the samples of worker on[i]
            return (
                Part(Box.whole((0, *self.graph[op].domain)).replace(0, samples))
                if (layout.on[micro_batch] == worker)
                else None
            )
        return layout.part(self.graph[op], worker, samples)

    def output(self, op: str, worker: int, micro_batch: int) -> Box | None:
        """Return the box of the output of `op` that `worker` computes for a micro-batch; None if it
        has no part."""
        part = self.part(op, worker, micro_batch)
        return None if part is None else self.graph[op].output_box(part)

    def inputs(self, worker: int, micro_batch: int, op: str) -> tuple[Box, ...]:
        """Return the boxes that the worker's part of `op` reads, one per input; empty if it has no
        part."""
        part = self.part(op, worker, micro_batch)
        return () if part is None else self.graph[op].needs(part)

    @property
    def loss_scale(self) -> float:
        """Factor of each sample's loss: one over the batch, or over the pass if every pass updates
        the weights."""
        passes = self.plan.micro_batches if self.plan.update == "pass" and LOSS not in self.merged else 1
        return passes / self.batch_size

    def sent(self, worker: int, itemsize: int) -> Sent:
        """Return the bytes that the worker sends in one step: exchanges at `itemsize`, gradients at least
        in fp32, and weights as they are read.

        A bucket of B elements on K workers costs each of them about 2·(K−1)/K·B elements: it sends
        the gradients of the other shards, and then its own updated shard to all others. In levels it
        is as much in all, but less between hosts.
        """
        forward = backward = sums = gathers = 0
        for exchange in self.exchanges.values():
            for t in exchange.transfers:
                if t.source != t.target:
                    size = t.box.volume * exchange.itemsize(itemsize)
                    forward += size * (t.source == worker)
                    backward += size * (t.target == worker)
        for bucket in self.buckets:
            if worker in bucket.workers:
                out, into = bucket.sums(worker)
                times = self.plan.micro_batches if self.updates_every_pass(bucket) else 1
                sums += times * out * bucket.sum_bytes(itemsize)
                gathers += times * into * bucket.gather_bytes(itemsize)
        return Sent(forward, backward, sums, gathers)

    def bytes_sent(self, worker: int, itemsize: int) -> int:
        """Return all bytes that the worker sends in one step."""
        return self.sent(worker, itemsize).total

    def updates_every_pass(self, bucket: Bucket) -> bool:
        """Return whether the bucket is updated after every pass instead of once a step."""
        return self.plan.update == "pass" and bucket.parameters[0][0] not in self.merged

    def parameters_held(self, worker: int) -> int:
        """Return the elements of the parameters that the worker holds."""
        return sum(box.volume for bucket in self.buckets if worker in bucket.workers for box in bucket.boxes)

    def parameters_updated(self, worker: int) -> int:
        """Return the elements of the shards that the worker updates and keeps the momentum of."""
        return sum(
            stop - start
            for bucket in self.buckets
            if worker in bucket.workers
            for start, stop in [bucket.shard(worker)]
        )

    def multiply_adds(self, worker: int) -> int:
        """Return the multiply-adds of the worker in one step.

        Backward takes as many as forward for the weights, and as many again for the input unless no
        weights precede.
        """
        total, trained = 0, set[str]()
        for op in self.graph:
            passes = 3 if trained.intersection(op.inputs) else 2
            if passes == 3 or op.parameters:
                trained.add(op.name)
            for m in range(self.plan.micro_batches):
                part = self.part(op.name, worker, m)
                total += 0 if part is None else passes * op.multiply_adds(part)
        return total

    def __str__(self) -> str:
        lines = []
        for s in self.segments:
            ops = " ".join(f"{name} +" if name in self.fused else name for name in s.ops)
            lines.append(f"segment {s.index} on {sorted(s.workers)}{' merged' if s.merged else ''}: {ops}")
        lines += [f"worker {w}: {' '.join(map(str, steps))}" for w, steps in enumerate(self.steps)]
        return "\n".join(lines)
