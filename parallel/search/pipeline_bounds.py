"""Lower bounds of a pipeline's timeline, from what its stages compute, exchange and synchronise.

Stages are 0 … S − 1, micro-batches 1 … m. Seconds of stage j, for one micro-batch:

    f_j, b_j    forward and backward
    a_j         adding the gradients to those of earlier micro-batches; not for the first one
    p_j, q_j    exchanges among its own workers, forward and backward (linear layers split in c)
    x_j, y_j    exchange with stage j − 1: its input, and the gradient of that; x_0 = y_0 = 0

and for a step: s_j sums of gradients, u_j update, g_j gathering of parameters. σ is the share of a
message's time that its workers lose for computing. d_j is how many micro-batches stage j may hold:
S − j in 1F1B, m in fill-drain. For one micro-batch alone,

    A_j = A_{j−1} + f_{j−1} + p_{j−1} + x_j            earliest start of stage j         (`_starts`)
    D_j = y_j + q_{j−1} + b_{j−1} + D_{j−1}            drain after its last backward     (`_drains`)
    R_j = x_{j+1} + f_{j+1} + p_{j+1} + R_{j+1}        from the end of its forward to the
          + q_{j+1} + b_{j+1} + y_{j+1}                start of its backward            (`_returns`)

The last backward of stage j ends at E_j, at least each of (`_computed`, `_turned`):

    A_j + m·(f_j + b_j) + (m − 1)·a_j + σ·M_j
        M_j: messages between its first forward and its last backward                    (`_between`)
    A_j + f_j + p_j + R_j + m·b_j + (m − 1)·a_j + (m − d_j)·f_j
        at most d_j forwards come before the first backward
    A_j + m·f_j + (m − d_j)·b_j + (m − d_j − 1)·a_j + R_j + b_j + a_j
        at least m − d_j backwards come before the last forward
    A_j + f_j + p_j + R_j + (m − d_j)·(f_j + b_j) + (m − d_j − 1)·a_j + R_j + b_j + a_j
        both, where m > d_j: the wait for the first return ends before the last one begins
    max_i (A_i + m·f_i + Σ_{l>i} (x_l + f_l)) + Σ_{l>j} (b_l + y_l) + m·b_j + (m − 1)·a_j
        fill-drain with stages 0 … S − 2 split in n: each passes a micro-batch on per time unit of
        the schedule, so that the last stage has computed all forwards when it turns

The timeline takes at least each of, for every j (`bound_s`):

    E_j + max(D_j, u_j, g_j)
        updates and gathers come after all backwards of their workers
    E_j − (b_j − b of its last op) − a_j − σ·q_j + s_j + g_j
        sums wait for the last micro-batch, though not for all of its backward
    A_j − x_j + m·(x_j + y_j + p_j + q_j + x_{j+1} + y_{j+1}) + max(s_j + g_j, D_j − y_j)
        a worker has one message at a time; if stage 0 is split in n, its first and last ones have
        f_0 before and b_0 after them. Where a stage is on other nodes than the one before it,
        x and y pass between them at the same time, and the line holds for what a worker receives,
        x_j and y_{j+1}, and for what it sends, y_j and x_{j+1}                         (`_messages`)
    A_j + m·(f_j + b_j) + (m − 1)·a_j + σ·(M_j + s_j) + u_j
        every message takes σ of its time from computing
    A_j + (m − 1)·x_j + f_j + p_j + R_j + q_j + b_j + D_j
        the last micro-batch arrives after all others

All are admissible: what is added up happens one after the other, on one worker in the schedule's
order or along one micro-batch's way, and no term exceeds the simulator's. For the first stages of a
longer pipeline they hold with d_j = m and without the last line of E_j (`order` None).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parallel.search.cost_table import ALMOST


@dataclass(frozen=True, slots=True)
class StageCost:
    """Seconds of one stage: of a micro-batch, and of a step where it says so."""

    forward: float
    backward: float
    accumulate: float
    """Adding the gradients of a micro-batch to those of the ones before."""
    last_backward: float
    """Backward of the stage's last op alone."""
    in_n: bool
    """All ops are split in n: their workers exchange nothing among themselves."""
    inside_forward: float
    """Exchanges among the stage's own workers."""
    inside_backward: float
    enter_forward: float
    """The exchange from the stage before; 0 for the first stage."""
    enter_backward: float
    two_way: bool
    """Whether both of these pass at the same time, since the stage before is on other nodes."""
    sums: float
    """Summing the gradients, for a step."""
    update: float
    """Updating the parameters, for a step."""
    gathers: float
    """Gathering the updated parameters, for a step."""


def bound_s(stages: Sequence[StageCost], micro_batches: int, order: str | None, slowdown: float) -> float:
    """Return a lower bound of the timeline; `order` None: of every pipeline that begins with these stages."""
    m, starts, drains = micro_batches, _starts(stages), _drains(stages)
    returns = _returns(stages)
    ends = _computed(stages, m, order, slowdown, starts, returns)
    if order == "fill_drain":
        ends = [max(*pair) for pair in zip(ends, _turned(stages, m, starts), strict=True)]
    bound = 0.0
    for j, stage in enumerate(stages):
        trip = stage.forward + stage.inside_forward + returns[j] + stage.inside_backward + stage.backward
        behind_last = (
            stage.backward - stage.last_backward + stage.accumulate + slowdown * stage.inside_backward
        )
        taken = slowdown * (_between(stages, j, m) + stage.sums)
        bound = max(
            bound,
            ends[j] + max(drains[j], stage.update, stage.gathers),
            ends[j] - behind_last + stage.sums + stage.gathers,
            starts[j] - stage.enter_forward + _messages(stages, j, m, drains[j]),
            starts[j] + _work(stage, m) + taken + stage.update,
            starts[j] + (m - 1) * stage.enter_forward + trip + drains[j],
        )
    return bound * ALMOST


def _starts(stages: Sequence[StageCost]) -> list[float]:
    """Return A_j."""
    starts, now = [], 0.0
    for stage in stages:
        now += stage.enter_forward
        starts.append(now)
        now += stage.forward + stage.inside_forward
    return starts


def _drains(stages: Sequence[StageCost]) -> list[float]:
    """Return D_j."""
    drains, now = [], 0.0
    for stage in stages:
        now += stage.enter_backward
        drains.append(now)
        now += stage.backward + stage.inside_backward
    return drains


def _returns(stages: Sequence[StageCost]) -> list[float]:
    """Return R_j."""
    returns, now = [], 0.0
    for stage in reversed(stages):
        returns.append(now)
        now += (
            stage.enter_forward
            + stage.forward
            + stage.inside_forward
            + stage.inside_backward
            + stage.backward
            + stage.enter_backward
        )
    return returns[::-1]


def _leave(stages: Sequence[StageCost], j: int) -> float:
    """Return x_{j+1} + y_{j+1}."""
    return stages[j + 1].enter_forward + stages[j + 1].enter_backward if j + 1 < len(stages) else 0.0


def _messages(stages: Sequence[StageCost], j: int, m: int, drain: float) -> float:
    """Return the time from stage j's first message to the end, if nothing but messages took any."""
    stage = stages[j]
    after = stages[j + 1] if j + 1 < len(stages) else None
    x, y = stage.enter_forward, stage.enter_backward
    x_next, y_next = (after.enter_forward, after.enter_backward) if after else (0.0, 0.0)
    apart, apart_next = stage.two_way, after is not None and after.two_way
    inside = stage.inside_forward + stage.inside_backward
    received = m * (inside + x + y_next + (0.0 if apart else y) + (0.0 if apart_next else x_next))
    sent = m * (inside + y + x_next + (0.0 if apart else x) + (0.0 if apart_next else y_next))
    syncs = stage.sums + stage.gathers
    if j == 0 and stage.in_n:
        return stage.forward + max(received, sent) + max(syncs, stage.backward)
    return max(
        received + max(syncs, drain - (0.0 if apart else y)),
        (x if apart else 0.0) + sent + max(syncs, drain - y),
    )


def _work(stage: StageCost, m: int) -> float:
    return m * (stage.forward + stage.backward) + (m - 1) * stage.accumulate


def _between(stages: Sequence[StageCost], j: int, m: int) -> float:
    """Return the messages of stage j between its first forward and its last backward."""
    stage = stages[j]
    inside = m * (stage.inside_forward + stage.inside_backward)
    return inside + m * _leave(stages, j) + (m - 1) * (stage.enter_forward + stage.enter_backward)


def _computed(
    stages: Sequence[StageCost],
    m: int,
    order: str | None,
    slowdown: float,
    starts: Sequence[float],
    returns: Sequence[float],
) -> list[float]:
    """Return bounds of E_j that hold for all splits."""
    ends = []
    for j, stage in enumerate(stages):
        held = min(m, len(stages) - j) if order == "1f1b" else m
        more = m - held
        last = stage.backward + (stage.accumulate if m > 1 else 0.0)
        first_backward = stage.forward + stage.inside_forward + returns[j]
        added = max(more - 1, 0) * stage.accumulate
        end = max(
            _work(stage, m) + slowdown * _between(stages, j, m),
            first_backward + m * stage.backward + (m - 1) * stage.accumulate + more * stage.forward,
            m * stage.forward + more * stage.backward + added + returns[j] + last,
            first_backward + more * (stage.forward + stage.backward) + added + returns[j] + last
            if more
            else 0.0,
        )
        ends.append(starts[j] + end)
    return ends


def _turned(stages: Sequence[StageCost], m: int, starts: Sequence[float]) -> list[float]:
    """Return bounds of E_j where the last stage computes all forwards before its first backward."""
    if m > 1 and not all(stage.in_n for stage in stages[:-1]):
        return [0.0] * len(stages)  # the last stage may have to wait for a forward, and turn earlier
    turn, onward = 0.0, 0.0
    for stage, start in zip(reversed(stages), reversed(starts), strict=True):
        turn = max(turn, start + m * stage.forward + onward)
        onward += stage.enter_forward + stage.forward + stage.inside_forward
    ends, now = [], turn
    for stage in reversed(stages):
        ends.append(now + m * stage.backward + (m - 1) * stage.accumulate)
        now += stage.backward + stage.inside_backward + stage.enter_backward
    return ends[::-1]
