"""Programs: a plan lowered to a list of steps for each worker, backward included.

A *segment* is a run of ops on the same workers with no exchange between them. The steps of a worker
(`steps`) compute segments, start exchanges and wait for them, and update buckets of parameters.

All workers follow one global order, each running the steps that concern it, so no plan can
deadlock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from parallel.graph import LOSS, Graph
from parallel.graph.box import Box, cut
from parallel.graph.ops import Part
from parallel.plans import Plan
from parallel.program.bucket import Bucket
from parallel.program.exchange import Exchange
from parallel.program.schedule import Task
from parallel.program.steps import Step


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
