"""Pipeline schedules, fill-drain and 1F1B: the order in which segments compute micro-batches.

One list scheduler over unit costs (forward 1, backward 2) produces all of them. A task runs when
its dependencies have ended and all its workers are idle; forwards go before backwards, and early
micro-batches before late ones. Schedules differ only in the number of micro-batches that a segment
may have in flight:

    fill_drain  all (GPipe, Huang et al. 2019)
    1f1b        the number of pipeline stages from the segment to the loss: warm-up, steady state of one forward and
                one backward, cool-down (PipeDream-flush, Narayanan et al. 2021, section 2.2)
    passes      one, so that every pass reads the weights that the previous pass updated

The order in which tasks start is a total order that respects every dependency; all workers follow
it. One micro-batch needs no scheduler: forwards run in the order of the graph and backwards in
reverse, which the simulator's recurrence relies on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """Forward or backward of a segment for a micro-batch (None: for all of them)."""

    backward: bool
    segment: int
    micro_batch: int | None


def schedule(
    workers: Sequence[frozenset[int]],
    merged: Sequence[bool],
    edges: Sequence[tuple[int, int]],
    micro_batches: int,
    pipeline: str,
) -> list[Task]:
    """Return all tasks in order. `workers` and `merged` are per segment; `edges` are (producer,
    consumer) segments."""
    count = len(workers)
    if micro_batches == 1:
        forwards = [Task(False, s, None if merged[s] else 0) for s in range(count)]
        return forwards + [Task(True, task.segment, task.micro_batch) for task in reversed(forwards)]
    if pipeline == "1f1b":
        most_in_flight = _stages_to_loss(workers, edges)
    else:
        most_in_flight = [1 if pipeline == "passes" else micro_batches] * count
    return _in_order(workers, _dependencies(merged, edges, micro_batches), most_in_flight)


def _dependencies(
    merged: Sequence[bool], edges: Sequence[tuple[int, int]], micro_batches: int
) -> dict[Task, list[Task]]:
    """Return the tasks that must have ended before each task."""

    def tasks_of(segment: int, backward: bool) -> list[Task]:
        batches: Sequence[int | None] = [None] if merged[segment] else range(micro_batches)
        return [Task(backward, segment, m) for m in batches]

    def at(segment: int, backward: bool, m: int | None) -> list[Task]:
        """Return the tasks of a neighbouring segment for micro-batch m: all of them if either side
        is merged."""
        return [t for t in tasks_of(segment, backward) if m is None or t.micro_batch in (None, m)]

    dependencies: dict[Task, list[Task]] = {}
    for s in range(len(merged)):
        before, after = [p for p, c in edges if c == s], [c for p, c in edges if p == s]
        for task in tasks_of(s, False):
            dependencies[task] = [t for p in before for t in at(p, False, task.micro_batch)]
        for task in tasks_of(s, True):
            own = Task(False, s, task.micro_batch)
            dependencies[task] = [own, *(t for c in after for t in at(c, True, task.micro_batch))]
    return dependencies


def _stages_to_loss(workers: Sequence[frozenset[int]], edges: Sequence[tuple[int, int]]) -> list[int]:
    """Return the number of pipeline stages from each segment to the loss, both included."""
    depth = [1] * len(workers)
    for s in reversed(range(len(workers))):
        after = [c for p, c in edges if p == s]
        depth[s] = max([depth[c] + (not workers[s] & workers[c]) for c in after], default=1)
    return depth


def _in_order(
    workers: Sequence[frozenset[int]],
    dependencies: Mapping[Task, Sequence[Task]],
    most_in_flight: Sequence[int],
) -> list[Task]:
    """Return the tasks in the order in which the list scheduler starts them.

    `most_in_flight`: micro-batches that a segment may have in flight.
    """

    def priority(task: Task) -> tuple[int, int, int]:
        return int(task.backward), task.micro_batch or 0, -task.segment if task.backward else task.segment

    order: list[Task] = []
    ended: dict[Task, int] = {}
    running: list[tuple[int, Task]] = []
    in_flight = [0] * len(workers)
    pending = set(dependencies)
    now = 0
    while pending:
        busy = {w for end, t in running for w in workers[t.segment] if end > now}
        ready = sorted(
            (t for t in pending if all(ended.get(d, now + 1) <= now for d in dependencies[t])), key=priority
        )
        for task in ready:
            limited = not task.backward and in_flight[task.segment] >= most_in_flight[task.segment]
            if limited or workers[task.segment] & busy:
                continue
            pending.remove(task)
            order.append(task)
            busy |= workers[task.segment]
            in_flight[task.segment] += -1 if task.backward else 1
            end = now + (2 if task.backward else 1)
            ended[task] = end
            running.append((end, task))
        running = [(end, t) for end, t in running if end > now]
        if pending:
            now = min(end for end, _ in running)
    return order
