"""The steps of a program as text, one row for every step of a worker."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.graph.box import Box
from parallel.plans.text import span_of
from parallel.program.bucket import Bucket
from parallel.program.precision import ACTIVATION_BYTES, SYNC_BYTES
from parallel.program.program import Program, Segment
from parallel.program.steps import Backward, Forward, Start, Step, Update, Wait
from parallel.results.formatting import size


@dataclass(frozen=True)
class StepRow:
    """One step of one worker."""

    step: str
    what: str
    box: str
    """Box of the output that is computed, held or needed; for a bucket, the span that the worker
    updates."""
    sent: int
    """Bytes that the step starts to send."""
    received: int
    """Bytes that the step waits for. The weights that `U` receives are waited for in the next
    forward."""


STEP_COLUMNS = ("step", "what", "box", "sends", "receives")


def step_cells(program: Program, worker: int, precision: str) -> list[list[str]]:
    """Return a row of text for every step of `worker` under `STEP_COLUMNS`."""
    return [
        [row.step, row.what, row.box, *(size(count) if count else "" for count in (row.sent, row.received))]
        for row in step_rows(program, worker, ACTIVATION_BYTES[precision])
    ]


def step_rows(program: Program, worker: int, itemsize: int) -> list[StepRow]:
    """Return a row for every step of `worker`; activations have `itemsize` bytes per element."""
    return [_row(program, worker, step, itemsize) for step in program.steps[worker]]


def marked_schedule(program: Program, worker: int, position: int, around: int = 4) -> str:
    """Return the steps of `worker` around the one at `position`, one per line; that one is
    marked."""
    steps = program.steps[worker]
    first, last = max(0, position - around), min(len(steps), position + around + 1)
    lines = [f"worker {worker}, {len(steps)} steps:"]
    for i in range(first, last):
        what = _row(program, worker, steps[i], SYNC_BYTES).what
        lines.append(f"  {i:4}  {steps[i]!s:8}  {what}{'   <-- here' if i == position else ''}")
    if position >= len(steps):
        lines.append(f"  {len(steps):4}  end   <-- here")
    return "\n".join(lines)


def _row(program: Program, worker: int, step: Step, itemsize: int) -> StepRow:
    match step:
        case Forward(index, m):
            segment = program.segments[index]
            return StepRow(str(step), span_of(segment.ops), _output(program, segment, m, worker), 0, 0)
        case Backward(index, m, sync):
            segment, shared = (
                program.segments[index],
                [i for i in sync if len(program.buckets[i].workers) > 1],
            )
            sums = f", sum {' '.join(f'U{i}' for i in shared)}" if shared else ""
            sent = sum(
                bucket.sums(worker)[0] * bucket.sum_bytes(itemsize)
                for bucket in (program.buckets[i] for i in shared)
            )
            return StepRow(
                str(step),
                span_of(reversed(segment.ops)) + sums,
                _output(program, segment, m, worker),
                sent,
                0,
            )
        case Start(index, m, backward) | Wait(index, m, backward):
            exchange, starts = program.exchanges[index, m], isinstance(step, Start)
            ends = [
                (t.target, t.source, t.box) if backward else (t.source, t.target, t.box)
                for t in exchange.transfers
                if t.source != t.target
            ]
            volume = exchange.itemsize(itemsize) * sum(
                box.volume for source, target, box in ends if worker == (source if starts else target)
            )
            box = (exchange.holds if starts != backward else exchange.needs).get(worker)
            return StepRow(
                str(step),
                exchange.name,
                "-" if box is None else str(box),
                volume if starts else 0,
                0 if starts else volume,
            )
        case Update(index):
            bucket = program.buckets[index]
            (start, stop), (out, into) = bucket.shard(worker), bucket.sums(worker)
            gathered = bucket.gather_bytes(itemsize)
            return StepRow(
                str(step),
                span_of(".".join(name) for name in bucket.parameters),
                f"[{start}:{stop}] of {bucket.padded}" + _way(bucket),
                into * gathered,
                into * bucket.sum_bytes(itemsize) + out * gathered,
            )


def _way(bucket: Bucket) -> str:
    return " in levels" if bucket.levels else " by collectives" if bucket.collective else ""


def _output(program: Program, segment: Segment, m: int | None, worker: int) -> str:
    """Return the box of the last op's output; adjacent boxes of several micro-batches are
    merged."""
    boxes: list[Box] = []
    for batch in range(program.plan.micro_batches) if m is None else [m]:
        box = program.output(segment.ops[-1], worker, batch)
        if box is None:
            continue
        first = box.spans[0]
        if boxes and boxes[-1].spans[0][1] == first[0]:
            boxes[-1] = boxes[-1].replace(0, (boxes[-1].spans[0][0], first[1]))
        else:
            boxes.append(box)
    return " ".join(map(str, boxes))
