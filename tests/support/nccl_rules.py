"""NCCL's rules for the order of messages, checked on what every rank of a run would enqueue.

A rank enqueues *groups* on its stream. A group consists of operations that progress together: sends and
receives, or one collective. Nothing carries a name or a tag, so the order alone decides what meets what:

    valid      no operation is empty; every tensor is contiguous and of a data type that NCCL
               has; nobody sends to itself                                                     `_check_operations`
    waits      a wait follows its start; every group that receives is waited for, before the
               end; a group is waited for once                                                  `_check_waits`
    pairs      of every ordered pair of ranks, the k-th send and the k-th receive have the same
               key, elements and data type: both ends are in groups of the same message         `_check_pairs`
    members    the k-th collective of a set of ranks is the same on all of them                 `_check_members`
    progress   a group starts when it is first on the stream of its rank, and ends when every
               one of its operations has met its counterpart, which also has to be first on its
               stream. All streams end                                                          `_check_progress`
    repeated   steps of a kind that follow a step of a kind enqueue the same groups in the same
               order                                                                            `_check_repeated`

NCCL buffers small sends, and so runs some programs that "progress" rejects; its documentation does not
promise it. Communicators have streams of their own, so "progress" is stricter for them, too: NCCL allows
several communicators at a time only if all ranks use them in one order.

The first rules are NCCL's. "Repeated" is what a run adds: a swap of two groups that have no rank in common, and
that no chain of other groups orders (`ordered`), changes no result and blocks nobody. Only a comparison
with another step shows it.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

Key = tuple[object, ...]
SEND, RECEIVE = "send", "receive"
DTYPES = ("int8", "uint8", "int32", "int64", "float16", "bfloat16", "float32", "float64", "bool")
"""Data types that torch sends with NCCL (`ncclDataType` in ProcessGroupNCCL.cpp), but for those of 8 bits."""


class OrderError(Exception):
    """Raised for a broken rule, which `rule` names, with the rank and its group."""

    def __init__(self, rule: str, sentence: str) -> None:
        self.rule = rule
        super().__init__(f"{rule}: {sentence}")


@dataclass(frozen=True)
class Operation:
    """A send, a receive or a collective."""

    kind: str
    """`SEND`, `RECEIVE`, or the name of a collective."""
    ranks: tuple[int, ...]
    """The rank at the other end, or all members of the collective."""
    elements: int
    dtype: str
    contiguous: bool = True


@dataclass(frozen=True)
class Group:
    """Operations that a rank enqueues together."""

    number: int
    """Place among the groups of its rank, by which it is waited for."""
    key: Key
    operations: tuple[Operation, ...]

    def __str__(self) -> str:
        return f"group {self.number}, {' '.join(map(str, self.key))}"

    @property
    def receives(self) -> bool:
        return any(operation.kind != SEND for operation in self.operations)

    def peers(self, rank: int) -> frozenset[int]:
        return frozenset(peer for operation in self.operations for peer in operation.ranks) - {rank}


@dataclass(frozen=True)
class Waited:
    """A wait for the group with this number."""

    number: int


@dataclass(frozen=True)
class Begun:
    """The begin of a step, such as training or evaluation."""

    step: str


Event = Group | Waited | Begun


@dataclass(frozen=True)
class Run:
    """What every rank enqueues and waits for, in order."""

    ranks: tuple[tuple[Event, ...], ...]

    @cached_property
    def streams(self) -> tuple[tuple[Group, ...], ...]:
        """The groups of every rank."""
        return tuple(tuple(event for event in rank if isinstance(event, Group)) for rank in self.ranks)


def check(run: Run) -> None:
    """Raise `OrderError` for the first rule that the run breaks."""
    check_nccl(run)
    _check_repeated(run)


def check_nccl(run: Run) -> None:
    """Raise `OrderError` for the first of NCCL's rules that the run breaks."""
    _check_operations(run)
    _check_waits(run)
    _check_pairs(run)
    _check_members(run)
    _check_progress(run)


def _check_operations(run: Run) -> None:
    for rank, stream in enumerate(run.streams):
        for group in stream:
            where = f"rank {rank}, {group}"
            if not group.operations:
                raise OrderError("valid", f"{where}: has no operation")
            for operation in group.operations:
                if operation.elements == 0:
                    raise OrderError("valid", f"{where}: {operation.kind} of nothing")
                if operation.dtype.removeprefix("torch.") not in DTYPES:
                    raise OrderError("valid", f"{where}: {operation.kind} of {operation.dtype}")
                if not operation.contiguous:
                    raise OrderError("valid", f"{where}: {operation.kind} of a tensor with gaps")
                if operation.kind in (SEND, RECEIVE):
                    (peer,) = operation.ranks
                    if peer == rank or peer not in range(len(run.ranks)):
                        raise OrderError("valid", f"{where}: {operation.kind} with rank {peer}")
                elif rank not in operation.ranks or len(group.operations) > 1:
                    raise OrderError("valid", f"{where}: {operation.kind} of ranks {operation.ranks}")


def _check_waits(run: Run) -> None:
    for rank, events in enumerate(run.ranks):
        started: dict[int, Group] = {}
        waited: set[int] = set()
        for event in events:
            match event:
                case Group():
                    started[event.number] = event
                case Waited(number):
                    if number not in started:
                        raise OrderError("waits", f"rank {rank} waits for group {number} before it starts")
                    if number in waited:
                        raise OrderError("waits", f"rank {rank} waits twice for {started[number]}")
                    waited.add(number)
        for number, group in started.items():
            if number not in waited:
                raise OrderError("waits", f"rank {rank} never waits for {group}")


def _check_pairs(run: Run) -> None:
    ends: dict[str, defaultdict[tuple[int, int], list[tuple[Group, Operation]]]]
    ends = {SEND: defaultdict(list), RECEIVE: defaultdict(list)}
    for rank, stream in enumerate(run.streams):
        for group in stream:
            for operation in group.operations:
                if operation.kind in ends:
                    (peer,) = operation.ranks
                    pair = (rank, peer) if operation.kind == SEND else (peer, rank)
                    ends[operation.kind][pair].append((group, operation))
    for pair in sorted({*ends[SEND], *ends[RECEIVE]}):
        sends, receives = ends[SEND][pair], ends[RECEIVE][pair]
        for k, ((sent, send), (received, receive)) in enumerate(zip(sends, receives, strict=False)):
            ours, theirs = (
                (group.key, operation.elements, operation.dtype)
                for group, operation in ((sent, send), (received, receive))
            )
            if ours != theirs:
                raise OrderError(
                    "pairs",
                    f"message {k} from rank {pair[0]} to rank {pair[1]}: sent {_described(*ours)}, "
                    f"received {_described(*theirs)}",
                )
        if len(sends) != len(receives):
            raise OrderError(
                "pairs",
                f"rank {pair[0]} sends {len(sends)} messages to rank {pair[1]}, which receives {len(receives)}",
            )


def _described(key: Key, elements: int, dtype: str) -> str:
    return f"{' '.join(map(str, key))} ({elements} elements, {dtype})"


def _check_members(run: Run) -> None:
    calls: defaultdict[tuple[int, ...], dict[int, list[tuple[str, Key, int, str]]]] = defaultdict(dict)
    for rank, stream in enumerate(run.streams):
        for group in stream:
            for o in group.operations:
                if o.kind not in (SEND, RECEIVE):
                    own = calls[o.ranks].setdefault(rank, [])
                    own.append((o.kind, group.key, o.elements, o.dtype))
    for ranks, by_rank in calls.items():
        first = by_rank.get(ranks[0], [])
        for rank in ranks[1:]:
            own = by_rank.get(rank, [])
            if own != first:
                k = next((k for k, (a, b) in enumerate(zip(own, first, strict=False)) if a != b), None)
                k = min(len(own), len(first)) if k is None else k
                theirs, ours = (calls[k] if k < len(calls) else "none" for calls in (first, own))
                raise OrderError(
                    "members",
                    f"collective {k} of ranks {ranks}: {theirs} on rank {ranks[0]}, {ours} on {rank}",
                )


class _Streams:
    """The streams of all ranks while they run."""

    def __init__(self, run: Run) -> None:
        self._streams = run.streams
        self.at = [0] * len(run.streams)
        self._left: list[deque[Operation]] = [deque() for _ in run.streams]
        self._open(range(len(run.streams)))

    def head(self, rank: int) -> Group | None:
        stream = self._streams[rank]
        return stream[self.at[rank]] if self.at[rank] < len(stream) else None

    def left(self, rank: int) -> Sequence[Operation]:
        """Return the operations of the first group of a rank that have not met their counterparts."""
        return self._left[rank]

    def _open(self, ranks: Sequence[int]) -> None:
        for rank in ranks:
            head = self.head(rank)
            self._left[rank] = deque(head.operations if head is not None else ())

    def advance(self, rank: int) -> set[int]:
        """Run what can run of the first group of a rank; return the ranks that then have a new first one."""
        met = {rank}
        for operation in tuple(self._left[rank]):
            if operation.kind in (SEND, RECEIVE):
                (peer,) = operation.ranks
                other = RECEIVE if operation.kind == SEND else SEND
                counterpart = next(
                    (o for o in self._left[peer] if o.kind == other and o.ranks == (rank,)), None
                )
                if counterpart is not None:
                    self._left[rank].remove(operation)
                    self._left[peer].remove(counterpart)
                    met.add(peer)
            elif all(
                any(o.kind == operation.kind and o.ranks == operation.ranks for o in self._left[member])
                for member in operation.ranks
            ):
                for member in operation.ranks:
                    self._left[member].clear()
                met.update(operation.ranks)
        done = {other for other in met if not self._left[other] and self.head(other) is not None}
        for other in done:
            self.at[other] += 1
        self._open(tuple(done))
        return done


def _check_progress(run: Run) -> None:
    streams = _Streams(run)
    ready = deque(range(len(run.ranks)))
    while ready:
        for rank in streams.advance(ready.popleft()):
            if rank not in ready:
                ready.append(rank)
    stuck = {rank: head for rank in range(len(run.ranks)) if (head := streams.head(rank)) is not None}
    if stuck:
        waits = "; ".join(
            f"rank {rank} in {group} needs ranks "
            f"{sorted({peer for o in streams.left(rank) for peer in o.ranks} - {rank})}"
            for rank, group in stuck.items()
        )
        raise OrderError("progress", f"deadlock: {waits}")


def _check_repeated(run: Run) -> None:
    for rank, events in enumerate(run.ranks):
        seen: dict[tuple[str, str], tuple[int, list[tuple[Key, tuple[Operation, ...]]]]] = {}
        for number, (kind, groups) in enumerate(_steps(events)):
            before_number, before = seen.setdefault(kind, (number, groups))
            if before != groups:
                k = next((k for k, (a, b) in enumerate(zip(before, groups, strict=False)) if a != b), -1)
                names = [" ".join(map(str, step[k][0])) if step else "nothing" for step in (before, groups)]
                raise OrderError(
                    "repeated",
                    f"rank {rank}, step {number} ({kind[1]} after {kind[0]}) enqueues {names[1]} where step "
                    f"{before_number} enqueued {names[0]}",
                )


def _steps(
    events: Sequence[Event],
) -> Iterator[tuple[tuple[str, str], list[tuple[Key, tuple[Operation, ...]]]]]:
    """Yield (kind of the step before, own kind) and the groups of each step.

    At the start all weights are up to date, as after `pieces`.
    """
    before, step, groups = "", "pieces", list[tuple[Key, tuple[Operation, ...]]]()
    for event in events:
        match event:
            case Begun(following):
                yield (before, step), groups
                before, step, groups = step, following, []
            case Group():
                groups.append((event.key, event.operations))
    yield (before, step), groups


# Mutations.


def neighbours(run: Run) -> Iterator[tuple[int, Group, Group]]:
    """Yield every two groups that follow each other on a rank."""
    for rank, stream in enumerate(run.streams):
        for first, second in zip(stream, stream[1:], strict=False):
            yield rank, first, second


def swapped(run: Run, rank: int, first: Group, second: Group) -> Run:
    """Return the run with two groups of a rank in each other's place."""
    places: Mapping[Event, Event] = {first: second, second: first}
    events = tuple(
        places.get(event, event) if isinstance(event, Group) else event for event in run.ranks[rank]
    )
    return Run((*run.ranks[:rank], events, *run.ranks[rank + 1 :]))


class Dependences:
    """What orders the groups of all ranks, as a graph: another way to see which swaps block.

        start(g) → end(g)               of every group
        start(h) → end(g)               of every group h with the other end of an operation of g
        end(g)   → start(the next)      on the stream of a rank

    A swap of two neighbours g, g' turns the last kind of edge round, to end(g') → start(g). The ranks block each
    other, or their messages no longer match, if and only if another path leads from start(g) to end(g').
    """

    def __init__(self, run: Run) -> None:
        self._others: defaultdict[_Node, set[_Node]] = defaultdict(set)
        """Groups with an end of the same operations."""
        self._next: dict[_Node, _Node] = {}
        self._waited: set[_Node] = set()
        """Groups that are waited for before the next one starts."""
        ends: defaultdict[tuple[object, ...], list[_Node]] = defaultdict(list)
        for rank, stream in enumerate(run.streams):
            for first, second in zip(stream, stream[1:], strict=False):
                self._next[rank, first.number] = rank, second.number
            calls = Counter[tuple[object, ...]]()
            for group in stream:
                for operation in group.operations:
                    name = _operation_name(rank, operation)
                    ends[(*name, calls[name])].append((rank, group.number))
                    calls[name] += 1
        for groups in ends.values():
            for group in groups:
                self._others[group].update(other for other in groups if other != group)
        for rank, events in enumerate(run.ranks):
            last = -1
            for event in events:
                if isinstance(event, Group):
                    last = event.number
                elif isinstance(event, Waited) and event.number == last:
                    self._waited.add((rank, last))

    def ordered(self, rank: int, first: Group, second: Group) -> bool:
        """Return whether something besides their places on `rank` orders two neighbours of it.

        That is a wait for the first before the second starts, or a path through other ranks.
        """
        if (rank, first.number) in self._waited:
            return True
        goals = self._others[rank, second.number]
        seen: set[_Node] = set()
        ended = [*self._others[rank, first.number]]  # not `first` itself, whose end leads to the removed edge
        while ended:
            following = self._next.get(ended.pop())
            if following is None or following in seen:
                continue
            if following in goals:
                return True
            seen.add(following)
            ended += [following, *self._others[following]]
        return False


_Node = tuple[int, int]
"""Rank and number of a group."""


def _operation_name(rank: int, operation: Operation) -> tuple[object, ...]:
    """Return the same name for all ends of operations that meet in their order."""
    if operation.kind == SEND:
        return rank, *operation.ranks
    return (*operation.ranks, rank) if operation.kind == RECEIVE else ("all of", *operation.ranks)
