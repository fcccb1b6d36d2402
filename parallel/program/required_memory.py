"""Upper estimate of the memory that each worker of a program needs, computed from the program.

    weights      parameters that the worker holds; in bf16 also their bf16 copies, or of buckets that several
                 workers hold in bf16 (`Bucket.rounded`) those and an fp32 shard
    gradients    one per parameter held, and a second copy in buckets that are joined or reordered to be sent
    momentum     of the shards that the worker updates
    received     gradients from the other workers: K − 1 times a shard that K workers hold, unless a
                 collective sums them in place
    activations  kept by forwards for later backwards; the maximum over the worker's steps
    messages     being sent or received, or received and not used up yet; gradients that one segment of the
                 worker leaves for another; the maximum over its steps
    images       two float batches of this worker's images, and four byte batches read ahead
    working      the largest op: its inputs and their gradients, its output's gradient, scratch of backward
    model        the whole model, from which the worker copies its part; its memory may be freed in small pieces
    other        scratch space of kernels, threads, the transport: a constant

The estimate is the sum. It is high on purpose: activations and messages may peak at different
times, and outputs that the next op overwrites are counted. In nine runs of all strategies on a CPU
it was 1.0 to 2.4 times the measured memory; the factor is largest if a worker holds a small part of
the model. The interpreter, its libraries, a GPU's context and the data set are not included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence, Set
from dataclasses import dataclass

from parallel.graph import INPUT
from parallel.graph.ops import Op
from parallel.program.bucket import Bucket
from parallel.program.exchange import Exchange
from parallel.program.precision import ACTIVATION_BYTES, WEIGHT_BYTES
from parallel.program.program import Program, Segment
from parallel.program.steps import Backward, Forward, Start, Wait

FLOAT_BATCHES, BYTE_BATCHES = 2, 4
"""Batches that the loader keeps: as floats, the current and the next one; as bytes, two ready, one
being converted, one being read."""


@dataclass(frozen=True)
class Memory:
    """Bytes that one worker needs."""

    weights: int
    gradients: int
    momentum: int
    received: int
    activations: int
    messages: int
    images: int
    working: int
    model: int
    other: int = 64_000_000

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(dataclasses.astuple(self))


def memory_of(program: Program, worker: int, precision: str) -> Memory:
    """Return the memory that `worker` needs. `precision` is fp32, bf16 or fp64."""
    weight, activation = WEIGHT_BYTES[precision], ACTIVATION_BYTES[precision]
    buckets = [bucket for bucket in program.buckets if worker in bucket.workers]
    held = program.parameters_held(worker)
    activations, messages = _peaks(program, worker, activation)
    return Memory(
        weights=sum(_weights(bucket, worker, weight, activation) for bucket in buckets),
        gradients=(held + sum(bucket.size for bucket in buckets if _is_copied(bucket))) * weight,
        momentum=program.parameters_updated(worker) * weight,
        received=sum(bucket.sums(worker)[1] for bucket in buckets if not bucket.collective) * weight,
        activations=activations,
        messages=messages,
        images=_images(program, worker) * (FLOAT_BATCHES * weight + BYTE_BATCHES),
        working=max(
            (_working(program, segment, worker, activation) for segment in program.segments), default=0
        ),
        model=program.graph.parameter_count * weight,
    )


def refuse_too_large(
    program: Program, precision: str, available: Sequence[int | None], *, copies: bool = False
) -> None:
    """Raise `ValueError` if a worker needs more bytes than `available`, by worker; None: unknown.

    `copies`: the same memory also holds copies of the state for checkpoints.
    """
    for worker, there in enumerate(available):
        need = memory_of(program, worker, precision).total
        if copies:
            need += 2 * program.parameters_updated(worker) * WEIGHT_BYTES[precision]
        if there is not None and need > there:
            raise ValueError(
                f"the plan is too large for worker {worker}: it needs about {need / 1e9:.2f} GB of memory "
                f"with trainer.batch_size={program.batch_size}, and {there / 1e9:.2f} GB are free"
            )


def _weights(bucket: Bucket, worker: int, weight: int, activation: int) -> int:
    """Return the bytes of a bucket's weights, with those of their rounded copies."""
    held = sum(box.volume for box in bucket.boxes)
    if activation >= weight:
        return held * weight
    start, stop = bucket.shard(worker)
    unrounded = stop - start if bucket.rounded and len(bucket.workers) > 1 else held
    return held * activation + unrounded * weight


def _is_copied(bucket: Bucket) -> bool:
    """Return whether gradients are copied: for a collective, if several are joined, or if a
    convolution's change memory order."""
    return bucket.collective or len(bucket.boxes) > 1 or len(bucket.boxes[0].spans) > 2


def _images(program: Program, worker: int) -> int:
    """Return the elements of the images that the worker loads. Images are loaded whole."""
    channels, height, width = program.graph.input_shape
    readers = [op for op in program.graph if INPUT in op.inputs]
    samples = {
        part.box.spans[0]
        for op in readers
        for m in range(program.plan.micro_batches)
        if (part := program.part(op.name, worker, m)) is not None
    }
    return sum(stop - start for start, stop in samples) * channels * height * width


def _working(program: Program, segment: Segment, worker: int, itemsize: int) -> int:
    """Return the working memory of the largest op of a segment, in bytes."""

    def of(op: Op, m: int) -> int:
        part = program.part(op.name, worker, m)
        if part is None:
            return 0
        elements = part.box.volume + 2 * sum(box.volume for box in op.needs(part))
        return elements * itemsize + op.kept_bytes(part, itemsize)

    batches, join = range(program.plan.micro_batches), sum if segment.merged else max
    return max(join(of(program.graph[name], m) for m in batches) for name in segment.ops)


def _peaks(program: Program, worker: int, itemsize: int) -> tuple[int, int]:
    """Return the peak bytes of activations and of messages over the worker's steps."""
    producers = {name: segment.index for segment in program.segments for name in segment.ops}
    exchanged = {(exchange.value, exchange.consumer) for exchange in program.exchanges.values()}
    waits = {
        (step.exchange, step.micro_batch, step.backward)
        for step in program.steps[worker]
        if isinstance(step, Wait)
    }
    activations = most_activations = messages = most_messages = 0
    gradients: dict[tuple[int, int | None], int] = {}
    """Bytes of gradients that were received or left by a later segment, by the segment and
    micro-batch that will use them."""

    def leave(value: str, m: int | None, size: int) -> None:
        key = producers[value], None if value in program.merged else m
        gradients[key] = gradients.get(key, 0) + size

    for step in program.steps[worker]:
        match step:
            case Forward(index, m):
                activations += _kept(program, program.segments[index], m, worker, itemsize)
            case Backward(index, m):
                activations -= _kept(program, program.segments[index], m, worker, itemsize)
                messages -= gradients.pop((index, m), 0)
                for value, size in _left(program, program.segments[index], m, worker, itemsize, exchanged):
                    leave(value, m, size)
                    messages += size
            case Start(index, m, backward) | Wait(index, m, backward):
                exchange, begins = program.exchanges[index, m], isinstance(step, Start)
                passing, lasting = _buffers(exchange, worker, backward, itemsize)
                messages += passing + lasting if begins else -passing
                if backward and begins != ((index, m, True) in waits) and (index, m, False) in waits:
                    # The value that forward received and its gradient are no longer needed.
                    messages -= _buffers(exchange, worker, False, itemsize)[1]
                if backward and not begins:
                    leave(exchange.value, m, lasting)
        most_activations, most_messages = max(most_activations, activations), max(most_messages, messages)
    return most_activations, most_messages


def _left(
    program: Program,
    segment: Segment,
    m: int | None,
    worker: int,
    itemsize: int,
    exchanged: Set[tuple[str, str]],
) -> list[tuple[str, int]]:
    """Return the gradients (value, bytes) that backward of a segment leaves for earlier segments of
    this worker."""
    own, found = {*segment.ops, INPUT}, list[tuple[str, int]]()
    for name in segment.ops:
        for value in program.graph[name].inputs:
            if value not in own and (value, name) not in exchanged:
                found += [
                    (value, box.volume * itemsize)
                    for batch in _batches(program, m)
                    if (box := program.output(value, worker, batch)) is not None
                ]
    return found


def _kept(program: Program, segment: Segment, m: int | None, worker: int, itemsize: int) -> int:
    """Return the bytes that forward of a segment keeps for its backward."""
    return sum(
        program.graph[name].kept_bytes(part, itemsize)
        for name in segment.ops
        for batch in _batches(program, m)
        if (part := program.part(name, worker, batch)) is not None
    )


def _batches(program: Program, m: int | None) -> Sequence[int]:
    """Return the micro-batches of a step."""
    return range(program.plan.micro_batches) if m is None else [m]


def _buffers(exchange: Exchange, worker: int, backward: bool, itemsize: int) -> tuple[int, int]:
    """Return the bytes of one direction of an exchange: messages until the wait, and result.

    Sent boxes are copied. Received boxes go straight to their place, unless they are to be added.
    """
    sent, received = (
        elements.get(worker, 0) for elements in (exchange.moved[::-1] if backward else exchange.moved)
    )
    wants = (exchange.holds if backward else exchange.needs).get(worker)
    adds = exchange.adds or backward
    size = exchange.itemsize(itemsize)
    return (sent + (received if adds else 0)) * size, 0 if wants is None else wants.volume * size
