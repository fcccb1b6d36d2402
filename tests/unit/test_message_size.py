"""Messages of a step add up to what its listing says that each worker receives."""

from __future__ import annotations

from hypothesis import HealthCheck, assume, given, settings

from parallel.plans import Plan
from parallel.program.listing import step_rows
from parallel.program.lowering import lower
from parallel.program.message_size import received_bytes
from tests.support.small_models import graph_of, plans

TOWERS = graph_of("towers")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(plans(TOWERS))
def test_messages_are_what_a_worker_receives(drawn: tuple[Plan, int]) -> None:
    plan, batch = drawn
    assume(plan.update == "step")
    program = lower(TOWERS, plan, batch)
    assert received_bytes(program, 0, ("sum", 0, "within", 1), 4) == 0, "levels have no sizes of their own"
    sums, sent_in_sums = 0, 0
    for worker in range(plan.workers):
        buckets = range(len(program.buckets))
        gradients = sum(received_bytes(program, worker, ("sum", i), 4) for i in buckets)
        weights = sum(received_bytes(program, worker, ("gather", i), 4) for i in buckets)
        activations = sum(
            received_bytes(program, worker, (*key, way), 2) for key in program.exchanges for way in "><"
        )
        rows = step_rows(program, worker, 4)
        assert gradients + weights == sum(row.received for row in rows if row.step.startswith("U"))
        # A worker receives the gradients of its shard, which it sends after the update.
        assert gradients == sum(row.sent for row in rows if row.step.startswith("U"))
        halves = step_rows(program, worker, 2)
        assert activations == sum(row.received for row in halves if "W" in row.step)
        sums, sent_in_sums = sums + gradients, sent_in_sums + program.sent(worker, 4).sums
    assert sums == sent_in_sums
