"""Which worker is to blame when the workers of a run cannot go on.

Each worker keeps telling the others its state. What a worker knows of another is that state and for how long it has
not changed; a living one changes with every beat. In this order a worker is to blame that

    1. has been silent for the whole timeout: it died, or is stopped, or its machine is gone;
    2. has been silent for some beats, when a connection broke or a wait took too long;
    3. lives, but is not itself waiting, when a wait took too long: the one that has been at its work for longest;

and if all wait, they wait for each other. A connection that broke to a worker that lives says nothing yet: that worker
is about to tell why it ended it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

BEAT_S = 0.5
"""How often a worker tells its state."""
SILENT_S = 4 * BEAT_S
"""A worker that has not been heard of for so long is taken for dead where there is another sign of it. A thread on an
overloaded machine may miss a beat or two."""
BROKEN_S = 10 * BEAT_S
"""How long a living worker may take to say why it closed a connection."""


@dataclass(frozen=True)
class State:
    """What a worker tells of itself."""

    beat: int
    where: str
    """step 17"""
    doing: str
    """computing; loading data; waiting for worker 1: …"""
    seconds: float
    """How long it has been doing that."""
    waits: bool
    """For another worker, or to end after it did in vain."""
    told: bool
    """By a signal, to end."""
    done: bool
    """It has left the run in order."""

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def decode(text: bytes) -> State:
        return State(**json.loads(text))


@dataclass(frozen=True)
class Trouble:
    """What this worker ran into."""

    seconds: float
    """Since when."""
    broken: bool
    """A connection broke; otherwise a wait took too long, or this worker was told to end and asks whether why."""
    waiting_for: str
    """What it was waiting for, as `State.doing` has it."""


def judge(me: int, states: Mapping[int, State], silent: Mapping[int, float], timeout_s: float,
          trouble: Trouble | None, told: bool = False) -> str | None:
    """The sentence that says who is to blame; None as long as nobody is.

    `states` are by rank, this worker's among them; `silent` is the seconds since each of the others changed.
    """
    others = {rank: state for rank, state in states.items() if rank != me and not state.done and not state.told}
    suspect = trouble is not None or told
    limit = SILENT_S if suspect else max(timeout_s, SILENT_S)
    quiet = {rank: silent[rank] for rank in others if silent[rank] >= limit}
    if quiet:
        rank = max(quiet, key=lambda r: quiet[r])
        gone = "is gone" if trouble is not None and trouble.broken or told else "does not answer"
        return (f"worker {rank} {gone}: no sign of life for {quiet[rank]:.1f} s, the last one in "
                f"{others[rank].where} ({others[rank].doing})")
    if trouble is None:
        return None
    if trouble.broken:
        if trouble.seconds < BROKEN_S:
            return None
        return f"a connection broke in {states[me].where}, though all workers live ({trouble.waiting_for})"
    if not all(silent[rank] < SILENT_S for rank in others):
        return None
    busy = {rank: state for rank, state in others.items() if not state.waits}
    if busy:
        rank = max(busy, key=lambda r: busy[r].seconds)
        return (f"worker {rank} has not come to where others wait for it: in {busy[rank].where} it has been "
                f"{busy[rank].doing} for {busy[rank].seconds:.1f} s (cluster.timeout_s={timeout_s:g})")
    all_wait = "; ".join(f"worker {rank}, {state.where}: {state.doing}" for rank, state in sorted(states.items()))
    return f"all workers wait for each other, for longer than cluster.timeout_s={timeout_s:g} ({all_wait})"
