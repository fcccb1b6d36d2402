"""Programs: a plan lowered to a list of steps per worker, backward included.

A *segment* is a run of ops on the same workers with no exchange between them. A worker's list holds

    F2:1    forward of segment 2 for micro-batch 1 (F2: for all micro-batches at once)
    B2:1    its backward; `sync` names the buckets whose gradients are complete in it and begin to be summed
    X3:1>   start exchange 3 of micro-batch 1, forward; <X3:1 the transposed exchange of the backward pass
    W3:1>   wait for it; <W3:1 likewise
    U4      wait for the summed gradients of bucket 4, update its parameters

in one global order, of which every worker runs the part that concerns it: so no plan can deadlock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from parallel.graph import LOSS, Graph
from parallel.graph.box import Box, Span, cut
from parallel.graph.ops import Part
from parallel.plans import Plan
from parallel.program.precision import WIDE_BYTES
from parallel.program.schedule import Task


@dataclass(frozen=True)
class Segment:
    """A run of ops that each of its workers computes without hearing from another."""

    index: int
    ops: tuple[str, ...]
    workers: frozenset[int]
    merged: bool
    """Computed once a step, for all micro-batches together (the data-parallel ops of schemes b and c)."""


@dataclass(frozen=True)
class Transfer:
    """A box of a tensor that goes from one worker to another, or stays where it is (source = target)."""

    source: int
    target: int
    box: Box


@dataclass(frozen=True)
class Exchange:
    """Moving the output of op `value`, for one micro-batch, from the boxes that are held to those that are needed.

    Backward is the transpose: what was sent comes back, and overlaps add up.
    """

    index: int
    micro_batch: int
    value: str
    consumer: str
    holds: Mapping[int, Box]
    needs: Mapping[int, Box]
    adds: bool
    """The boxes held are partial sums: the forward direction, too, adds where they overlap."""
    wide: bool = False
    """In float64 whatever the precision: the statistics of a batch normalisation."""

    @cached_property
    def transfers(self) -> tuple[Transfer, ...]:
        """Every intersection of a box held with a box needed."""
        pairs = ((source, target, held & need) for source, held in self.holds.items()
                 for target, need in self.needs.items())
        return tuple(Transfer(source, target, box) for source, target, box in pairs if not box.empty)

    @cached_property
    def moved(self) -> tuple[Mapping[int, int], Mapping[int, int]]:
        """Numbers that each worker sends to others, and that each receives from them; backward they change places."""
        held, needed = (np.array([boxes[worker].spans for worker in boxes], dtype=np.int64)
                        for boxes in (self.holds, self.needs))  # [workers, dims, 2]
        overlaps = np.ones((len(held), len(needed)), dtype=np.int64)
        for d in range(held.shape[1]):  # a matrix of all pairs in every dim: 1,024 workers are a million of them
            stops = np.minimum(held[:, None, d, 1], needed[None, :, d, 1])
            overlaps *= np.maximum(0, stops - np.maximum(held[:, None, d, 0], needed[None, :, d, 0]))
        sources, targets = np.array(list(self.holds)), np.array(list(self.needs))
        overlaps[sources[:, None] == targets[None, :]] = 0
        return (dict(zip(self.holds, overlaps.sum(axis=1).tolist(), strict=True)),
                dict(zip(self.needs, overlaps.sum(axis=0).tolist(), strict=True)))

    @cached_property
    def workers(self) -> frozenset[int]:
        """Those that hold or need a part."""
        return frozenset(self.holds) | frozenset(self.needs)

    @property
    def name(self) -> str:
        return f"{self.value}>{self.consumer}"

    def itemsize(self, itemsize: int) -> int:
        """Bytes of a number that it moves, where those of activations have `itemsize`."""
        return WIDE_BYTES if self.wide else itemsize


@dataclass(frozen=True)
class Bucket:
    """Parameters that the same workers hold the same boxes of, and whose gradients are summed together."""

    index: int
    parameters: tuple[tuple[str, str], ...]
    """Pairs of op and parameter."""
    boxes: tuple[Box, ...]
    """What the workers hold of each."""
    workers: tuple[int, ...]

    @cached_property
    def size(self) -> int:
        """Elements."""
        return sum(box.volume for box in self.boxes)

    def shard(self, worker: int) -> Span:
        """The elements of the flattened bucket that `worker` updates."""
        return cut(self.size, len(self.workers), self.workers.index(worker))


@dataclass(frozen=True)
class Forward:
    segment: int
    micro_batch: int | None

    def __str__(self) -> str:
        return f"F{self.segment}" + ("" if self.micro_batch is None else f":{self.micro_batch}")


@dataclass(frozen=True)
class Backward:
    segment: int
    micro_batch: int | None
    sync: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"B{self.segment}" + ("" if self.micro_batch is None else f":{self.micro_batch}")


@dataclass(frozen=True)
class Start:
    exchange: int
    micro_batch: int
    backward: bool

    def __str__(self) -> str:
        name = f"X{self.exchange}:{self.micro_batch}"
        return f"<{name}" if self.backward else f"{name}>"


@dataclass(frozen=True)
class Wait:
    exchange: int
    micro_batch: int
    backward: bool

    def __str__(self) -> str:
        name = f"W{self.exchange}:{self.micro_batch}"
        return f"<{name}" if self.backward else f"{name}>"


@dataclass(frozen=True)
class Update:
    bucket: int

    def __str__(self) -> str:
        return f"U{self.bucket}"


Step = Forward | Backward | Start | Wait | Update


@dataclass(frozen=True)
class Sent:
    """Bytes that one worker sends in a step, by what for."""

    forward: int
    """Exchanges of the forward pass."""
    backward: int
    """Their transposes."""
    sums: int
    """Gradients, to the workers that update them."""
    gathers: int
    """Updated weights, to the workers that hold them."""

    @property
    def total(self) -> int:
        return self.forward + self.backward + self.sums + self.gathers


@dataclass(frozen=True)
class Program:
    """What every worker does in one optimizer step. Made by `lower.lower`."""

    graph: Graph
    plan: Plan
    batch_size: int
    segments: tuple[Segment, ...]
    exchanges: Mapping[tuple[int, int], Exchange]
    """By index and micro-batch."""
    buckets: tuple[Bucket, ...]
    merged: frozenset[str]
    """Ops of merged segments."""
    order: tuple[Task, ...]
    """Of all forwards and backwards; `steps` are what concerns each worker of it."""
    steps: tuple[tuple[Step, ...], ...]
    """By worker."""

    def part(self, op: str, worker: int, micro_batch: int) -> Part | None:
        """The part of `op` that `worker` computes for the micro-batch; None if it has none."""
        layout = self.plan[op]
        if worker not in layout.on:
            return None
        samples = cut(self.batch_size, self.plan.micro_batches, micro_batch)
        if op in self.merged and self.plan.scheme == "b":  # pass i is made of the samples of worker on[i]
            return Part(Box.whole((0, *self.graph[op].domain)).replace(0, samples)) if (
                layout.on[micro_batch] == worker) else None
        return layout.part(self.graph[op], worker, samples)

    def output(self, op: str, worker: int, micro_batch: int) -> Box | None:
        """The box of the output of `op` that `worker` computes for the micro-batch; None if it has no part."""
        part = self.part(op, worker, micro_batch)
        return None if part is None else self.graph[op].output_box(part)

    def inputs(self, worker: int, micro_batch: int, op: str) -> tuple[Box, ...]:
        """Boxes that the worker's part of `op` reads, per input; empty if it has no part."""
        part = self.part(op, worker, micro_batch)
        return () if part is None else self.graph[op].needs(part)

    @property
    def loss_scale(self) -> float:
        """Factor of a sample's loss: the mean over the batch, or over the pass when every pass updates."""
        passes = self.plan.micro_batches if self.plan.update == "pass" and LOSS not in self.merged else 1
        return passes / self.batch_size

    def sent(self, worker: int, itemsize: int) -> Sent:
        """Bytes that the worker sends in one step: exchanges both ways at `itemsize`, gradient sync in fp32 at least.

        A bucket of B elements on K workers costs each about 2(K−1)/K·B: its gradient's other shards go out, and its
        own updated shard goes to all others.
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
                start, stop = bucket.shard(worker)
                times = self.plan.micro_batches if self.updates_every_pass(bucket) else 1
                sums += times * (bucket.size - (stop - start)) * max(4, itemsize)
                gathers += times * (stop - start) * (len(bucket.workers) - 1) * max(4, itemsize)
        return Sent(forward, backward, sums, gathers)

    def bytes_sent(self, worker: int, itemsize: int) -> int:
        """All bytes that the worker sends in one step."""
        return self.sent(worker, itemsize).total

    def updates_every_pass(self, bucket: Bucket) -> bool:
        """Whether the bucket's parameters are updated after every pass rather than once a step."""
        return self.plan.update == "pass" and bucket.parameters[0][0] not in self.merged

    def parameters_held(self, worker: int) -> int:
        """Elements of the parameters that the worker holds."""
        return sum(bucket.size for bucket in self.buckets if worker in bucket.workers)

    def parameters_updated(self, worker: int) -> int:
        """Elements of the shards that the worker updates: it keeps their momentum."""
        return sum(stop - start for bucket in self.buckets if worker in bucket.workers
                   for start, stop in [bucket.shard(worker)])

    def multiply_adds(self, worker: int) -> int:
        """Multiply-adds of the worker in one step: forward, and in backward as many for the weights and again for the
        input, which is left out where no weights come before."""
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
        lines = [f"segment {s.index} on {sorted(s.workers)}{' merged' if s.merged else ''}: {' '.join(s.ops)}"
                 for s in self.segments]
        lines += [f"worker {w}: {' '.join(map(str, steps))}" for w, steps in enumerate(self.steps)]
        return "\n".join(lines)
