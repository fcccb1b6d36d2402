"""All workers stop after the same step, whoever hears of the stop when."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from parallel.runtime.failure.stopping import Stopping


class Worker:
    """A worker that takes steps, of which it cannot take one before the others have taken the one before."""

    def __init__(self) -> None:
        self.stopping = Stopping()
        self.done = 0
        self.in_step = False
        self.stopped: int | None = None

    def act(self, others: list[Worker]) -> None:
        """End the step that it is in, or be between two steps and perhaps begin another."""
        if self.in_step:
            if all(other.done + other.in_step > self.done for other in others):
                self.done, self.in_step = self.done + 1, False
        elif self.stopped is None:
            wanted = self.stopping.between_steps(self.done)
            agreed = self.stopping.agreed
            if wanted and agreed is not None and self.done >= agreed:
                self.stopped = self.done
            elif not wanted or agreed is not None:
                self.in_step = True

    def beat(self, workers: list[Worker], states: dict[int, int | None]) -> None:
        """Publish the own number and read those of all, as a heartbeat does."""
        states[workers.index(self)] = self.stopping.stated
        self.stopping.hear([states[rank] for rank in range(len(workers))])


@given(st.integers(1, 5), st.integers(0, 2**32), st.integers(0, 200))
def test_all_stop_after_the_same_step(size: int, seed: int, asked_at: int) -> None:
    chance = random.Random(seed)
    workers = [Worker() for _ in range(size)]
    states: dict[int, int | None] = dict.fromkeys(range(size))
    asked: set[int] = set()
    for moment in range(20_000):
        worker = chance.choice(workers)
        if moment >= asked_at and (not asked or chance.random() < 0.05):
            rank = workers.index(worker)
            worker.stopping.want()
            asked.add(rank)
        if chance.random() < 0.5:
            worker.beat(workers, states)
        else:
            worker.act([other for other in workers if other is not worker])
        if all(w.stopped is not None for w in workers):
            break
    assert {w.stopped for w in workers} == {workers[0].stopping.agreed}
    assert all(not w.in_step and w.done == w.stopped for w in workers)


def test_a_worker_that_is_in_no_step_states_nothing() -> None:
    stopping = Stopping()
    stopping.want()
    assert stopping.stated is None and stopping.agreed is None
    stopping.between_steps(7)
    stopping.hear([None, 3])
    assert stopping.stated == 8 and stopping.agreed is None
    stopping.hear([8, 3])
    assert stopping.agreed == 8
