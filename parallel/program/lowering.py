"""Lowering: convert a plan, a graph and a batch size to a program.

`_segments`   groups ops; a new segment begins where an edge needs an exchange or the workers change.
`_exchange`   makes one exchange per micro-batch of every edge between segments, unless every worker
              needs exactly the box that it holds.
`_fused`      finds statistics of batch normalisations that lie whole on every worker: the normalisation
              computes them, with torch's own kernel.
`_buckets`    groups parameters: the same box on the same workers, in the order in which backward
              completes their gradients; and decides which are summed in levels or by collectives.
`_steps`      projects the global order of forwards and backwards (`schedule`) onto every worker. An
              exchange starts right after its producer and is waited for right before its consumer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from parallel.graph import INPUT, Graph
from parallel.graph.box import Box, Span
from parallel.graph.ops import Op
from parallel.plans import Plan, check_batch
from parallel.program.bucket import Bucket
from parallel.program.exchange import Exchange
from parallel.program.levels import by_host, in_levels
from parallel.program.precision import SYNC_BYTES
from parallel.program.program import Program, Segment
from parallel.program.schedule import Task, schedule
from parallel.program.steps import Backward, Forward, Start, Step, Update, Wait

BUCKET_BYTES = 1 << 20
"""Parameters smaller than this, with `SYNC_BYTES` an element, share a bucket: below it, the latency of a
message outweighs its transfer."""
COLLECTIVE_BYTES = 25 << 20
"""From this size a bucket that is summed by collectives is full. A ring of K workers takes K − 1 rounds of
α + B / (K β): with 8 workers, α = 20 µs and β = 100 GB/s, as between GPUs, latency and transfer are equal at
B = K α β = 16 MB. Much larger buckets would start late, and the sum of the last one is not hidden behind the
backward pass. DDP has the same default."""


def lower(
    graph: Graph, plan: Plan, batch_size: int, hosts: Sequence[int] = (), *, collectives: bool = False
) -> Program:
    """Return the program of `plan`. Raises `ValueError` if the plan cannot divide the batch.

    `hosts` is the host of every worker, which decides the gradient sums in levels (`levels`). Without
    it all workers are on one host. With `collectives`, the backend's own collectives sum gradients and
    gather weights, for which hosts make no difference: NCCL's rings enter and leave each host once.
    """
    check_batch(graph, plan, batch_size)
    program = Program(
        graph, plan, batch_size, (), {}, (), _merged(graph, plan), frozenset(), (), ((),) * plan.workers
    )
    segments, edges = _segments(program)
    exchanges = {
        (i, m): _exchange(program, i, m, *edge)
        for i, edge in enumerate(edges)
        for m in range(plan.micro_batches)
    }
    program = replace(
        program,
        segments=segments,
        exchanges=exchanges,
        buckets=_buckets(program, segments, hosts, collectives),
        fused=_fused(graph, segments),
    )
    program = replace(program, order=_order(program))
    return replace(program, steps=_steps(program))


def _merged(graph: Graph, plan: Plan) -> frozenset[str]:
    """Return the leading ops, split in n like the first, that schemes b and c compute for the whole
    batch at once."""
    if plan.scheme == "a":
        return frozenset()
    first, merged = plan[graph.ops[0].name], set[str]()
    for op in graph:
        if plan[op.name] == first and all(name in merged or name == INPUT for name in op.inputs):
            merged.add(op.name)
    return frozenset(merged)


def _segments(program: Program) -> tuple[tuple[Segment, ...], list[tuple[str, str, int]]]:
    """Return the segments, and the edges that need an exchange: (producer, consumer, index of its
    input)."""
    plan, groups, edges = program.plan, list[list[str]](), list[tuple[str, str, int]]()
    for op in program.graph:
        crossing = [
            i
            for i, producer in enumerate(op.inputs)
            if producer != INPUT and not _local(program, producer, op, i)
        ]
        edges += [(op.inputs[i], op.name, i) for i in crossing]
        last = groups[-1][-1] if groups else None
        joins = (
            last is not None
            and not crossing
            and set(plan[last].on) == set(plan[op.name].on)
            and (last in program.merged) == (op.name in program.merged)
            and _same_samples(program, last, op.name)
        )
        if joins:
            groups[-1].append(op.name)
        else:
            groups.append([op.name])
    return tuple(
        Segment(i, tuple(names), frozenset(plan[names[0]].on), names[0] in program.merged)
        for i, names in enumerate(groups)
    ), edges


def _same_samples(program: Program, one: str, other: str) -> bool:
    """Return whether every worker computes both ops for the same samples; on branches they may
    differ."""

    def samples(op: str, worker: int, m: int) -> Span:
        part = program.part(op, worker, m)
        return (0, 0) if part is None else part.box.spans[0]

    return all(
        samples(one, worker, m) == samples(other, worker, m)
        for worker in program.plan[one].on
        for m in _different(program)
    )


def _different(program: Program) -> range:
    """Return the micro-batches to examine: one, or in scheme b all, since each is on another
    worker."""
    return range(program.plan.micro_batches if program.plan.scheme == "b" else 1)


def _local(program: Program, producer: str, op: Op, which: int) -> bool:
    """Return whether every worker holds exactly the box of input `which` that it needs, without
    partial sums."""
    if (producer in program.merged) != (op.name in program.merged) or _adds(program, producer):
        return False
    workers = {*program.plan[producer].on, *program.plan[op.name].on}
    for m in _different(program):
        for worker in workers:
            held, needed = program.output(producer, worker, m), program.inputs(worker, m, op.name)
            if held != (needed[which] if needed else None):
                return False
    return True


def _adds(program: Program, op: str) -> bool:
    """Return whether the parts of the op are partial sums."""
    return program.plan[op].terms(program.graph[op]) > 1


def _exchange(program: Program, index: int, m: int, producer: str, consumer: str, which: int) -> Exchange:
    holds: dict[int, Box] = {}
    needs: dict[int, Box] = {}
    for worker in range(program.plan.workers):
        held, needed = program.output(producer, worker, m), program.inputs(worker, m, consumer)
        if held is not None:
            holds[worker] = held
        if needed:
            needs[worker] = needed[which]
    return Exchange(
        index,
        m,
        producer,
        consumer,
        holds,
        needs,
        adds=_adds(program, producer),
        wide=program.graph[producer].wide,
    )


def _fused(graph: Graph, segments: tuple[Segment, ...]) -> frozenset[str]:
    """Return the ops that their reader computes with its own kernel: those in its segment.

    Without an exchange between the two, each worker holds all that its part of the reader needs, and no
    partial sums. Both then have the same parts, and what they read comes without an exchange, too.
    """
    return frozenset(
        own
        for segment in segments
        for name in segment.ops
        if (own := graph[name].fuses) is not None and own in segment.ops
    )


def _buckets(
    program: Program, segments: tuple[Segment, ...], hosts: Sequence[int], collectives: bool
) -> tuple[Bucket, ...]:
    """Return the buckets in the order in which backward completes them; each lies within one
    segment."""
    buckets: list[Bucket] = []

    def close(workers: tuple[int, ...], entries: list[tuple[str, str, Box]]) -> None:
        groups, collective = by_host(workers, hosts), collectives and len(workers) > 1
        full = sum(box.volume for _, _, box in entries) * SYNC_BYTES >= BUCKET_BYTES
        buckets.append(
            Bucket(
                len(buckets),
                tuple((op, name) for op, name, _ in entries),
                tuple(box for _, _, box in entries),
                workers,
                groups if full and in_levels(groups) and not collective else (),
                collective,
                all(program.graph[op].rounds_parameters for op, _, _ in entries),
            )
        )

    for segment in reversed(segments):
        small: dict[tuple[int, ...], list[tuple[str, str, Box]]] = defaultdict(list)
        for op_name in reversed(segment.ops):
            holders: dict[tuple[str, Box], list[int]] = defaultdict(list)
            for worker in sorted(segment.workers):
                part = next(
                    p
                    for m in range(program.plan.micro_batches)
                    if (p := program.part(op_name, worker, m)) is not None
                )
                for name, box in program.graph[op_name].parameter_boxes(part).items():
                    holders[name, box].append(worker)
            for (name, box), workers in holders.items():
                group, entry = tuple(workers), (op_name, name, box)
                collective = collectives and len(group) > 1
                limit = COLLECTIVE_BYTES if collective else BUCKET_BYTES
                if box.volume * SYNC_BYTES >= limit and not collective:  # which copies gradients in any case
                    close(group, [entry])
                    continue
                small[group].append(entry)
                if sum(b.volume for _, _, b in small[group]) * SYNC_BYTES >= limit:
                    close(group, small.pop(group))
        for group, entries in small.items():
            close(group, entries)
    return tuple(buckets)


def _order(program: Program) -> tuple[Task, ...]:
    """Return the global order of all forwards and backwards."""
    segments, plan = program.segments, program.plan
    segment_of = {name: segment.index for segment in segments for name in segment.ops}
    links = {
        (segment_of[producer], segment_of[op.name])
        for op in program.graph
        for producer in op.inputs
        if producer != INPUT and segment_of[producer] != segment_of[op.name]
    }
    pipeline = "passes" if plan.update == "pass" else "1f1b" if plan.scheme != "a" else plan.pipeline
    return tuple(
        schedule(
            [s.workers for s in segments],
            [s.merged for s in segments],
            sorted(links),
            plan.micro_batches,
            pipeline,
        )
    )


def _steps(program: Program) -> tuple[tuple[Step, ...], ...]:
    """Project the global order onto the workers."""
    projection = _Projection(program)
    for task in program.order:
        if task.backward:
            projection.backward(task)
        else:
            projection.forward(task)
    projection.update([bucket for bucket in program.buckets if not program.updates_every_pass(bucket)])
    return tuple(tuple(worker_steps) for worker_steps in projection.steps)


class _Projection:
    """Appends the steps of one task after the other to those of the workers that take part."""

    def __init__(self, program: Program) -> None:
        self.steps: list[list[Step]] = [[] for _ in range(program.plan.workers)]
        self._program = program
        segment_of = {name: segment.index for segment in program.segments for name in segment.ops}
        self._into, self._out_of = defaultdict[int, list[int]](list), defaultdict[int, list[int]](list)
        for index in sorted({index for index, _ in program.exchanges}):
            exchange = program.exchanges[index, 0]
            self._into[segment_of[exchange.consumer]].append(index)
            self._out_of[segment_of[exchange.value]].append(index)
        self._buckets = defaultdict[int, list[Bucket]](list)
        for bucket in program.buckets:
            self._buckets[segment_of[bucket.parameters[0][0]]].append(bucket)
        self._last_backward = {task.segment: task for task in program.order if task.backward}

    def forward(self, task: Task) -> None:
        """Wait for the exchanges into the segment, compute it, and start those out of it."""
        program, plan, segment = self._program, self._program.plan, self._program.segments[task.segment]
        batches = _batches(task, plan)
        for index in self._into[segment.index]:
            for m in batches:
                self._emit(Wait(index, m, False))
                # Schemes b and c: the exchange of the next pass overlaps with the compute of this
                # pass.
                if program.exchanges[index, m].value in program.merged and m + 1 < plan.micro_batches:
                    self._emit(Start(index, m + 1, False))
        for worker in segment.workers:
            self.steps[worker].append(Forward(segment.index, task.micro_batch))
        for index in self._out_of[segment.index]:
            for m in batches[:1] if segment.merged else batches:
                self._emit(Start(index, m, False))

    def backward(self, task: Task) -> None:
        """Wait for the gradients of the segment's outputs, compute its backward, and start the exchanges
        and sums of what it computes; update what every pass updates."""
        program, segment = self._program, self._program.segments[task.segment]
        batches = _batches(task, program.plan)
        for index in self._out_of[segment.index]:
            for m in batches:
                self._emit(Wait(index, m, True))
        ready = [
            bucket
            for bucket in self._buckets[segment.index]
            if self._last_backward[segment.index] == task or program.updates_every_pass(bucket)
        ]
        for worker in segment.workers:
            own = tuple(bucket.index for bucket in ready if worker in bucket.workers)
            self.steps[worker].append(Backward(segment.index, task.micro_batch, own))
        for index in self._into[segment.index]:
            for m in batches:
                self._emit(Start(index, m, True))
        self.update([bucket for bucket in ready if program.updates_every_pass(bucket)])

    def update(self, buckets: Sequence[Bucket]) -> None:
        """Update buckets on the workers that hold them."""
        for bucket in buckets:
            for worker in bucket.workers:
                self.steps[worker].append(Update(bucket.index))

    def _emit(self, step: Start | Wait) -> None:
        """Append a start to all workers of the exchange, or a wait to those that receive."""
        exchange = self._program.exchanges[step.exchange, step.micro_batch]
        receivers = exchange.holds if step.backward else exchange.needs
        for worker in exchange.workers if isinstance(step, Start) else receivers:
            self.steps[worker].append(step)


def _batches(task: Task, plan: Plan) -> range:
    return (
        range(plan.micro_batches)
        if task.micro_batch is None
        else range(task.micro_batch, task.micro_batch + 1)
    )
