"""Which worker is to blame when a run cannot continue.

Each worker publishes its state at every heartbeat. A worker knows the last state of every other
worker and for how long it has not changed. The blame falls on the first of these that exists:

    1. a worker that has been silent for the whole timeout: it died, is stopped, its machine is gone,
       or it has never joined the others;
    2. a worker that has been silent for some heartbeats, when a connection broke or a wait timed out;
       If all workers of a host are silent, the host is to blame; if those of all other hosts are, of
       which there are several, the network of this one;
    3. a live worker that is not waiting itself, when a wait timed out: the one that has been busy
       for longest.

If all workers wait, they wait for each other. A broken connection to a live worker is no evidence
yet: that worker is about to publish why it closed the connection.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from parallel.config import printable
from parallel.config.documents import from_json
from parallel.config.typed import structure
from parallel.results.formatting import listed
from parallel.runtime.failure.host_names import describe_host

BEAT_S = 0.5
"""Interval at which a worker publishes its state."""
SILENT_S = 4 * BEAT_S
"""Silence after which a worker counts as dead if there is other evidence. A thread on an overloaded
machine may miss a heartbeat or two."""
ABSENT_S = 30.0
"""Time in which a worker must join the others, unless the timeout is longer. It imports torch before,
which takes seconds on a busy machine."""
BROKEN_S = 10 * BEAT_S
"""Time that a live worker has to publish why it closed a connection."""

MOST_STATE_BYTES = 10_000
REFUSAL = re.compile(r"invalid input of worker (\d+): (.*)")
"""A blame that says that a worker rejected its input, and why."""


@dataclass(frozen=True)
class State:
    """State of a worker, as it publishes it."""

    beat: int
    where: str
    """Place in the run, such as: step 17."""
    doing: str
    """Activity, such as: computing; loading data; waiting for worker 1: …"""
    seconds: float
    """Duration of what it is doing."""
    waits: bool
    """Whether it waits for another worker, or to end after a wait that failed."""
    told: bool
    """Whether a signal told it to end."""
    done: bool
    """Whether it has left the run in order."""
    stops: int | None = None
    """Steps after which it can stop, if it wants to (`stopping.py`)."""
    host: str = ""
    """Host that it is on (`host_names.numbered_host`)."""

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def decode(text: bytes) -> State:
        """Read the state of another worker. Raises `ValueError` if it is none."""
        if len(text) > MOST_STATE_BYTES:
            raise ValueError(f"a state of {len(text):,} bytes is too large")
        state = structure(State, from_json(text), "state")
        return replace(state, where=printable(state.where), doing=printable(state.doing))


ABSENT = State(beat=0, where="the start", doing="starting", seconds=0.0, waits=False, told=False, done=False)
"""State of a worker that has not joined the others yet."""


def refusal(rank: int, sentence: str) -> str:
    """Return the blame of a worker that rejected its input."""
    return f"invalid input of worker {rank}: {sentence}"


def read_refusal(blame: str, hosts: Mapping[int, str], own: str) -> str | None:
    """Return why a worker rejected its input; None: the blame is another one.

    `hosts` are those of the workers that are known, by rank. If the worker's host is not this one,
    `own`, it is named.
    """
    found = REFUSAL.fullmatch(blame)
    if found is None:
        return None
    rank, sentence = int(found[1]), found[2]
    host = hosts.get(rank, "")
    if host == own:
        return sentence
    return f"{describe_host(host, [rank]) if host else f'worker {rank}'}: {sentence}"


@dataclass(frozen=True)
class Symptom:
    """Failure that this worker observed."""

    seconds: float
    """Time since it was observed."""
    broken: bool
    """A connection broke; otherwise a wait timed out."""
    waiting_for: str
    """What this worker was waiting for, in the words of `State.doing`."""


def find_blame(
    me: int,
    states: Mapping[int, State],
    silent: Mapping[int, float],
    timeout_s: float,
    symptom: Symptom | None,
    told: bool = False,
    per_host: int = 0,
) -> str | None:
    """Return the sentence that names the worker to blame, or None as long as there is none.

    `states` holds every worker's state by rank, `silent` the seconds since the state of each other
    worker changed. `told`: a signal told this worker to end. `per_host`: workers that the launcher started on
    each host, in order; 0: not known.
    """
    others = {
        rank: state for rank, state in states.items() if rank != me and not state.done and not state.told
    }
    suspect = symptom is not None or told
    quiet = {}
    for rank, state in others.items():
        limit = SILENT_S if suspect else max(timeout_s, ABSENT_S if state == ABSENT else SILENT_S)
        if silent[rank] >= limit:
            quiet[rank] = silent[rank]
    if quiet:
        rank = max(quiet, key=lambda r: quiet[r])
        broken = symptom is not None and symptom.broken or told
        state = others[rank]
        last = "since the start" if state == ABSENT else f"the last one in {state.where} ({state.doing})"
        limit = SILENT_S if suspect else timeout_s
        lost = _silent_part(me, rank, states, others, silent, limit, broken, per_host)
        return f"{lost}: no sign of life for {quiet[rank]:.1f} s, {last}"
    if symptom is None:
        return None
    if symptom.broken:
        if symptom.seconds < BROKEN_S:
            return None
        return f"a connection broke in {states[me].where}, though all workers live ({symptom.waiting_for})"
    if not all(silent[rank] < SILENT_S for rank in others):
        return None
    busy = {rank: state for rank, state in others.items() if not state.waits}
    if busy:
        rank = max(busy, key=lambda r: busy[r].seconds)
        return (
            f"worker {rank} has not reached the point where others wait for it: in {busy[rank].where} it has been "
            f"{busy[rank].doing} for {busy[rank].seconds:.1f} s (cluster.timeout_s={timeout_s:g})"
        )
    all_wait = "; ".join(
        f"worker {rank}, {state.where}: {state.doing}" for rank, state in sorted(states.items())
    )
    return f"all workers wait for each other, for longer than cluster.timeout_s={timeout_s:g} ({all_wait})"


def _silent_part(
    me: int,
    rank: int,
    states: Mapping[int, State],
    others: Mapping[int, State],
    silent: Mapping[int, float],
    limit: float,
    broken: bool,
    per_host: int,
) -> str:
    """Return who is silent, of whom worker `rank` is one, and what is said of them."""
    gone, own = "is gone" if broken else "does not answer", states[me].host
    if others[rank] == ABSENT:
        absent = [other for other, state in others.items() if state == ABSENT]
        absent_hosts = _whole_hosts(absent, per_host)
        if len(absent_hosts) == 1:
            return f"{absent_hosts[0]} {gone}"
        who = " and ".join(absent_hosts) or listed("worker", absent)
        return f"{who} {gone if len(absent) == 1 else 'are gone' if broken else 'do not answer'}"
    hosts: dict[str, list[int]] = defaultdict(list)
    for other, state in others.items():
        hosts[state.host].append(other)
    # Workers of one host fall silent together, but their last signs of life lie up to a heartbeat
    # apart, and are read up to a heartbeat later.
    quiet = {
        host: workers
        for host, workers in hosts.items()
        if host != own and all(silent[other] >= limit - 2 * BEAT_S for other in workers)
    }
    names = [describe_host(host, workers) for host, workers in quiet.items()]
    if len(quiet) > 1 and hosts.keys() - {own} == quiet.keys():
        workers = [other for other, state in states.items() if state.host == own]
        cut = describe_host(own, workers)
        return f"{cut} is cut off, or {' and '.join(names)} {'are gone' if broken else 'do not answer'}"
    if others[rank].host in quiet:
        return f"{describe_host(others[rank].host, quiet[others[rank].host])} {gone}"
    return f"worker {rank} {gone}"


def _whole_hosts(workers: Sequence[int], per_host: int) -> list[str]:
    """Return hosts in words if `workers` are all workers of these hosts; otherwise none."""
    numbers = sorted({worker // per_host for worker in workers}) if per_host else []
    of_hosts = {number: range(number * per_host, (number + 1) * per_host) for number in numbers}
    if sorted(workers) != [worker for own in of_hosts.values() for worker in own]:
        return []
    return [f"host {number} ({listed('worker', own)})" for number, own in of_hosts.items()]
