"""Dry run of a program: walk every worker's steps without computing anything, and reject invalid
programs.

`dry_run` checks, in this order,

1. the steps of each worker (`_Walk`). Every step that the worker takes part in occurs exactly once.
   A forward follows the arrival of its inputs; the start of an exchange follows the computation of
   its value; a wait follows its start; a backward follows the arrival of all readers' gradients; a
   gradient sum follows the last contribution; an update follows its gradient sum;
2. each pair of workers (`_check_matching`). Both start their common messages in the same order, by
   which transports match sends with receives;
3. all workers together (`_check_progress`). Starts do not block; waits and updates block until
   every peer has sent, and a backward that sums in levels until all workers of its host have sent.
   All lists must run to their end; otherwise the program deadlocks.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NoReturn

from parallel.graph import INPUT
from parallel.program.listing import marked_schedule
from parallel.program.program import Program
from parallel.program.steps import Backward, Forward, Start, Step, Update, Wait

Message = tuple[object, ...]


class ProgramError(RuntimeError):
    """Raised for an invalid program, with the worker, its step, the reason, and the steps around
    it."""

    def __init__(self, program: Program, worker: int, position: int, reason: str) -> None:
        steps = program.steps[worker]
        self.worker = worker
        self.step = str(steps[position]) if position < len(steps) else "end"
        super().__init__(
            f"worker {worker}, {self.step}: {reason}\n{marked_schedule(program, worker, position)}"
        )


def dry_run(program: Program) -> None:
    """Raise `ProgramError` unless every worker's steps are complete, in order, matched, and free of
    deadlock."""
    links = _Links(program)
    for worker in range(program.plan.workers):
        _Walk(program, links, worker).run()
    _check_matching(program)
    _check_progress(program)


class _Links:
    """The edges between segments, and the exchanges that carry them."""

    def __init__(self, program: Program) -> None:
        self.segment_of = {name: segment for segment in program.segments for name in segment.ops}
        self.bucket_segment = {b.index: self.segment_of[b.parameters[0][0]].index for b in program.buckets}
        exchanges = defaultdict[tuple[str, str], set[int]](set)
        for (index, _), exchange in program.exchanges.items():
            exchanges[exchange.value, exchange.consumer].add(index)
        self.entering = defaultdict[int, list[tuple[str, str, set[int]]]](list)
        """Per segment: (producer, consumer, exchanges) of every edge that enters it."""
        self.leaving = defaultdict[int, list[tuple[str, str, set[int]]]](list)
        """Per segment: (producer, consumer, exchanges) of every edge that leaves it."""
        for op in program.graph:
            for producer in op.inputs:
                if producer == INPUT or self.segment_of[producer] is self.segment_of[op.name]:
                    continue
                edge = producer, op.name, exchanges[producer, op.name]
                self.entering[self.segment_of[op.name].index].append(edge)
                self.leaving[self.segment_of[producer].index].append(edge)


class _Walk:
    """A walk through one worker's steps, with the state after the steps so far."""

    def __init__(self, program: Program, links: _Links, worker: int) -> None:
        self._program, self._links, self._worker = program, links, worker
        self._position = 0
        self._forwards = set[tuple[int, int | None]]()
        self._backwards = set[tuple[int, int | None]]()
        self._started = set[tuple[int, int, bool]]()
        self._arrived = set[tuple[int, int, bool]]()
        self._summed, self._updated = Counter[int](), Counter[int]()

    def run(self) -> None:
        for position, step in enumerate(self._program.steps[self._worker]):
            self._position = position
            match step:
                case Forward(segment, m):
                    self._forward(segment, m)
                case Backward(segment, m, sync):
                    self._backward(segment, m, sync)
                case Start(exchange, m, backward):
                    self._start(exchange, m, backward)
                case Wait(exchange, m, backward):
                    self._wait(exchange, m, backward)
                case Update(bucket):
                    self._update(bucket)
        self._position = len(self._program.steps[self._worker])
        self._check_complete()

    def _fail(self, reason: str) -> NoReturn:
        raise ProgramError(self._program, self._worker, self._position, reason)

    def _require(self, ok: bool, reason: str) -> None:
        if not ok:
            self._fail(reason)

    def _own_batches(self, segment: int) -> list[int | None]:
        """Return the micro-batches of a segment's steps."""
        return (
            [None]
            if self._program.segments[segment].merged
            else list(range(self._program.plan.micro_batches))
        )

    def _batches(self, m: int | None) -> Iterable[int]:
        return range(self._program.plan.micro_batches) if m is None else (m,)

    def _computed(self, op: str, m: int) -> tuple[int, int | None]:
        """Return the segment and micro-batch of the step that computes `op` for micro-batch m."""
        segment = self._links.segment_of[op]
        return segment.index, None if segment.merged else m

    def _check_work(self, segment: int, m: int | None) -> None:
        self._require(
            self._worker in self._program.segments[segment].workers, "the segment has no part on this worker"
        )
        self._require(m in self._own_batches(segment), "the segment is not computed for this micro-batch")

    def _forward(self, segment: int, m: int | None) -> None:
        self._check_work(segment, m)
        self._require((segment, m) not in self._forwards, "was computed before")
        for producer, consumer, indices in self._links.entering[segment]:
            for batch in self._batches(m):
                for index in indices:
                    if self._worker in self._program.exchanges[index, batch].needs:
                        self._require(
                            (index, batch, False) in self._arrived,
                            f"{consumer} reads {producer} before {Wait(index, batch, False)}",
                        )
                if not indices and self._program.part(consumer, self._worker, batch) is not None:
                    before = self._computed(producer, batch)
                    self._require(
                        before in self._forwards, f"{consumer} reads {producer} before {Forward(*before)}"
                    )
        passes = sum(done == segment for done, _ in self._forwards)
        for bucket in self._own_buckets(segment):
            self._require(
                self._updated[bucket] == (passes if self._every_pass(bucket) else 0),
                f"runs before {Update(bucket)} of the pass before",
            )
        self._forwards.add((segment, m))

    def _backward(self, segment: int, m: int | None, sync: Sequence[int]) -> None:
        self._check_work(segment, m)
        self._require((segment, m) not in self._backwards, "was computed before")
        self._require((segment, m) in self._forwards, f"comes before {Forward(segment, m)}")
        for producer, consumer, indices in self._links.leaving[segment]:
            for batch in self._batches(m):
                for index in indices:
                    if self._worker in self._program.exchanges[index, batch].holds:
                        self._require(
                            (index, batch, True) in self._arrived,
                            f"needs the gradient of {producer} before {Wait(index, batch, True)}",
                        )
                if not indices and self._program.part(consumer, self._worker, batch) is not None:
                    after = self._computed(consumer, batch)
                    self._require(
                        after in self._backwards,
                        f"needs the gradient of {producer} before {Backward(*after)}",
                    )
        self._backwards.add((segment, m))
        for bucket in sync:
            self._require(bucket in self._own_buckets(segment), f"sums U{bucket}, which is not its own")
            complete = self._every_pass(bucket) or all(
                (segment, batch) in self._backwards for batch in self._own_batches(segment)
            )
            self._require(
                complete, f"sums the gradients of U{bucket} before all micro-batches have added theirs"
            )
            self._require(
                self._summed[bucket] == self._updated[bucket], f"sums U{bucket} again before its update"
            )
            self._summed[bucket] += 1

    def _start(self, index: int, m: int, backward: bool) -> None:
        exchange = self._program.exchanges[index, m]
        self._require(self._worker in exchange.workers, "the exchange has no part on this worker")
        self._require((index, m, backward) not in self._started, "was started before")
        if not backward and self._worker in exchange.holds:
            before = self._computed(exchange.value, m)
            self._require(before in self._forwards, f"sends {exchange.value} before {Forward(*before)}")
        if backward and self._worker in exchange.needs:
            before = self._computed(exchange.consumer, m)
            self._require(
                before in self._backwards,
                f"sends the gradient of {exchange.value} before {Backward(*before)}",
            )
        self._started.add((index, m, backward))

    def _wait(self, index: int, m: int, backward: bool) -> None:
        exchange = self._program.exchanges[index, m]
        receivers = exchange.holds if backward else exchange.needs
        self._require(self._worker in receivers, "this worker receives nothing of the exchange")
        self._require((index, m, backward) in self._started, f"comes before {Start(index, m, backward)}")
        self._require((index, m, backward) not in self._arrived, "was waited for before")
        self._arrived.add((index, m, backward))

    def _update(self, bucket: int) -> None:
        self._require(
            self._worker in self._program.buckets[bucket].workers, "this worker does not hold the bucket"
        )
        self._require(self._summed[bucket] == self._updated[bucket] + 1, "its gradients have not been summed")
        self._updated[bucket] += 1

    def _own_buckets(self, segment: int) -> list[int]:
        return [
            b.index
            for b in self._program.buckets
            if self._worker in b.workers and self._links.bucket_segment[b.index] == segment
        ]

    def _every_pass(self, bucket: int) -> bool:
        return self._program.updates_every_pass(self._program.buckets[bucket])

    def _check_complete(self) -> None:
        """Check that no step of the worker is missing."""
        missing: list[Step] = []
        for segment in self._program.segments:
            if self._worker not in segment.workers:
                continue
            for m in self._own_batches(segment.index):
                missing += [Forward(segment.index, m)] * ((segment.index, m) not in self._forwards)
                missing += [Backward(segment.index, m)] * ((segment.index, m) not in self._backwards)
            for bucket in self._own_buckets(segment.index):
                times = self._program.plan.micro_batches if self._every_pass(bucket) else 1
                missing += [Update(bucket)] * (self._updated[bucket] != times)
        for (index, m), exchange in self._program.exchanges.items():
            for backward, receivers in ((False, exchange.needs), (True, exchange.holds)):
                key = index, m, backward
                missing += [Start(*key)] * (self._worker in exchange.workers and key not in self._started)
                missing += [Wait(*key)] * (self._worker in receivers and key not in self._arrived)
        self._require(not missing, f"missing: {' '.join(map(str, missing))}")


def _check_matching(program: Program) -> None:
    """Check that every pair of workers starts its common messages in the same order."""
    messages = [_messages(program, worker) for worker in range(program.plan.workers)]
    for one, other in combinations(range(program.plan.workers), 2):
        ours, theirs = messages[one][other], messages[other][one]
        for (position, message), (_, counterpart) in zip(ours, theirs, strict=False):
            if message != counterpart:
                raise ProgramError(
                    program,
                    one,
                    position,
                    f"its message {_name(message)} meets {_name(counterpart)} of worker {other}",
                )
        if len(ours) != len(theirs):
            worker, peer, extra = (one, other, ours) if len(ours) > len(theirs) else (other, one, theirs)
            position, message = extra[min(len(ours), len(theirs))]
            raise ProgramError(
                program, worker, position, f"its message {_name(message)} has no counterpart on worker {peer}"
            )


def _messages(program: Program, worker: int) -> dict[int, list[tuple[int, Message]]]:
    """Return the messages that the worker starts with each peer, in order, as (position of the
    step, message)."""
    found = defaultdict[int, list[tuple[int, Message]]](list)
    for position, step in enumerate(program.steps[worker]):
        common: list[tuple[Message, Iterable[int]]] = []
        match step:
            case Start(index, m, _):
                transfers = program.exchanges[index, m].transfers
                ends = [{t.source, t.target} for t in transfers]
                common.append(((step,), set[int]().union(*(end for end in ends if worker in end))))
            case Backward(_, _, sync):
                common += [(("sum of", Update(bucket)), program.buckets[bucket].workers) for bucket in sync]
            case Update(bucket):
                common.append((("weights of", step), program.buckets[bucket].workers))
        for message, peers in common:
            for peer in {*peers} - {worker}:
                found[peer].append((position, message))
    return found


def _name(message: Message) -> str:
    return " ".join(map(str, message))


def _check_progress(program: Program) -> None:
    """Check that the program does not deadlock."""
    progress = _Progress(program)
    progress.run()
    stuck = progress.stuck()
    if stuck:
        worker = min(stuck)
        others = ", ".join(f"worker {peer} at {step}" for peer, step in stuck.items() if peer != worker)
        raise ProgramError(
            program,
            worker,
            progress.at[worker],
            f"deadlock: it waits for workers {sorted(progress.awaited(worker))}; "
            f"also waiting: {others or 'no other worker'}",
        )


class _Progress:
    """The position of every worker in its steps, and what the workers have sent."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self.at = [0] * program.plan.workers
        self._entered = [-1] * program.plan.workers
        self._sent = set[tuple[int, int, int, bool]]()
        """Worker, exchange, micro-batch, and whether backward."""
        self._sums, self._updates = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
        """By worker and bucket."""

    def run(self) -> None:
        """Advance all workers until none of them can."""
        workers = range(self._program.plan.workers)
        while any([self._advance(worker) for worker in workers]):  # a list: every round advances all
            pass

    def stuck(self) -> dict[int, Step]:
        """Return the next step of each worker that is not at its end."""
        return {
            worker: steps[self.at[worker]]
            for worker, steps in enumerate(self._program.steps)
            if self.at[worker] < len(steps)
        }

    def awaited(self, worker: int) -> set[int]:
        """Return the workers whose messages the next step still needs."""
        match self._program.steps[worker][self.at[worker]]:
            case Wait(index, m, backward):
                transfers = self._program.exchanges[index, m].transfers
                sources = {
                    t.target if backward else t.source
                    for t in transfers
                    if (t.source if backward else t.target) == worker
                }
                return {source for source in sources if (source, index, m, backward) not in self._sent}
            case Backward(_, _, sync):
                buckets = self._program.buckets
                return {
                    peer
                    for levels, bucket in ((buckets[bucket].levels, bucket) for bucket in sync)
                    for peer in (() if levels is None else levels.local(worker))
                    if self._sums[peer, bucket] < self._sums[worker, bucket]
                }
            case Update(bucket):
                return {
                    peer
                    for peer in self._program.buckets[bucket].workers
                    if self._sums[peer, bucket] <= self._updates[worker, bucket]
                }
        return set()

    def _advance(self, worker: int) -> bool:
        """Run the worker's steps up to one that blocks; return whether there were any."""
        steps, begin = self._program.steps[worker], self.at[worker]
        while self.at[worker] < len(steps):
            self._enter(worker)
            if self.awaited(worker):
                break
            match steps[self.at[worker]]:
                case Start(index, m, backward):
                    self._sent.add((worker, index, m, backward))
                case Update(bucket):
                    self._updates[worker, bucket] += 1
            self.at[worker] += 1
        return self.at[worker] > begin

    def _enter(self, worker: int) -> None:
        """Send what the next step sends before it blocks."""
        step = self._program.steps[worker][self.at[worker]]
        if isinstance(step, Backward) and self._entered[worker] < self.at[worker]:
            self._sums.update((worker, bucket) for bucket in step.sync)
        self._entered[worker] = self.at[worker]
