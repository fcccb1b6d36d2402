"""Tokens between the workers of one host."""

from __future__ import annotations

import os

import pytest

from parallel.config import ClusterConfig
from parallel.runtime.communication.tokens import Inbox, Tokens, token_name
from parallel.runtime.communication.world import open_world
from parallel.runtime.failure.errors import WorkerLost
from parallel.runtime.failure.watch import NullWatch
from tests.support.workers import Workers

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
MORE_THAN_A_PIPE_HOLDS = 5000


def joined() -> tuple[Tokens, Tokens]:
    """Both ends, in this process."""
    inboxes = [Inbox(frozenset({1})), Inbox(frozenset({0}))]
    ends = [Tokens(rank, inboxes[rank], {1 - rank: inboxes[1 - rank].address}, NullWatch()) for rank in range(2)]
    for inbox in inboxes:
        inbox.opened()
    return ends[0], ends[1]


def test_names_may_be_waited_for_in_any_order() -> None:
    one, other = joined()
    a, b = token_name("a"), token_name("b")
    one.send(1, a, (1, 2, 3))
    one.send(1, b)
    one.send(1, a, (4, 5, -6))
    assert other.wait(0, b, ()) == (0, 0, 0)
    assert [other.wait(0, a, ()) for _ in range(2)] == [(1, 2, 3), (4, 5, -6)]


def test_a_worker_that_ended_is_lost_at_once() -> None:
    one, other = joined()
    one.send(1, token_name("last"))
    one.close()
    assert other.wait(0, token_name("last"), ()) == (0, 0, 0)
    with pytest.raises(WorkerLost, match="worker 0: it closed its connection"):
        other.wait(0, token_name("next"), ())
    with pytest.raises(WorkerLost, match="worker 0: .*Broken pipe"):
        other.send(0, token_name("answer"))


class Over(NullWatch):
    """The run cannot go on, and it is known why."""

    @property
    def over(self) -> bool:
        return True


def test_waiting_ends_with_the_run() -> None:
    _, other = joined()
    other._watch = Over()
    with pytest.raises(WorkerLost, match="the run is over"):
        other.wait(0, token_name("never"), ())


def fill_both_ways() -> list[int]:
    with open_world(ClusterConfig(device="cpu")) as world:
        tokens, peer = world.tokens, 1 - world.rank
        assert tokens is not None
        for i in range(MORE_THAN_A_PIPE_HOLDS):
            tokens.send(peer, token_name(i % 7), (i, 0, 0))
        return [tokens.wait(peer, token_name(i % 7), ())[0] for i in range(MORE_THAN_A_PIPE_HOLDS)]


def test_pipes_that_are_full_both_ways(workers: Workers) -> None:
    assert workers.run(2, fill_both_ways) == [list(range(MORE_THAN_A_PIPE_HOLDS))] * 2
