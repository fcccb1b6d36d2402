"""Tokens and files between the workers of one host."""

from __future__ import annotations

import os
import socket

import pytest

from parallel.config import ClusterConfig
from parallel.runtime.communication.opening import open_world
from parallel.runtime.communication.tokens import Tokens, token_name
from parallel.runtime.failure.errors import WorkerLost
from parallel.runtime.failure.null_watch import NullWatch
from tests.support.workers import Workers

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
MORE_THAN_A_PIPE_HOLDS = 5000
MORE_THAN_A_SOCKET_HOLDS = 600


def joined() -> tuple[Tokens, Tokens]:
    """Return both ends of a connection, in this process."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ends = Tokens({1: one}, NullWatch()), Tokens({0: other}, NullWatch())
    for tokens in ends:
        tokens.open()
    return ends


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


def test_files_are_taken_by_number() -> None:
    one, other = joined()
    numbers = []
    for content in (b"first", b"second"):
        file = os.memfd_create("test", os.MFD_CLOEXEC)
        os.write(file, content)
        numbers.append(one.pass_file(1, file))
        os.close(file)
    for number, content in zip(reversed(numbers), (b"second", b"first"), strict=True):
        file = other.take_file(0, number)
        assert os.pread(file, 10, 0) == content and not os.get_inheritable(file)
        os.close(file)
    with pytest.raises(WorkerLost, match="worker 0: it has not passed file 3"):
        other.take_file(0, 3)


class Over(NullWatch):
    """Watch of a failed run whose blame is known."""

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


def pass_files_both_ways() -> int:
    """Pass more files than a socket can hold before taking one, on every worker."""
    with open_world(ClusterConfig(device="cpu")) as world:
        tokens, peer = world.tokens, 1 - world.rank
        assert tokens is not None
        file = os.memfd_create("test", os.MFD_CLOEXEC)
        for _ in range(MORE_THAN_A_SOCKET_HOLDS):
            tokens.send(peer, token_name("file"), (tokens.pass_file(peer, file), 0, 0))
        os.close(file)
        taken = [
            tokens.take_file(peer, tokens.wait(peer, token_name("file"), ())[0])
            for _ in range(MORE_THAN_A_SOCKET_HOLDS)
        ]
        for other in taken:
            os.close(other)
    return len(set(taken))


def test_sockets_that_are_full_both_ways(workers: Workers) -> None:
    assert workers.run(2, pass_files_both_ways) == [MORE_THAN_A_SOCKET_HOLDS] * 2


def test_pipes_that_are_full_both_ways(workers: Workers) -> None:
    assert workers.run(2, fill_both_ways) == [list(range(MORE_THAN_A_PIPE_HOLDS))] * 2
