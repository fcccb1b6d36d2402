"""The dry run accepts every program that lowering makes, and rejects it when a step is removed,
repeated or moved."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parallel.plans import read_plan
from parallel.program import Backward, Program, Start, Step, Update, Wait
from parallel.program.dry_run import ProgramError, dry_run
from parallel.program.lowering import lower
from tests.support.small_models import MODELS, graph_of, plans

GRAPHS = {name: graph_of(name) for name in MODELS}
drawn_programs = st.sampled_from(sorted(GRAPHS)).flatmap(
    lambda name: plans(GRAPHS[name]).map(lambda drawn: lower(GRAPHS[name], *drawn))
)
any_program = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))

PROGRAMS = {
    "pipeline": ("tower", 4, "{workers: 2, micro_batches: 2, ops: {conv1: {on: [0]}, fc3: {on: [1]}}}"),
    "two way": ("tower", 4, "{workers: 2, ops: {conv1: {n: 2, on: [0, 1]}, fc3: {c: 2, on: [0, 1]}}}"),
    "passes": (
        "tower",
        8,
        "{workers: 2, scheme: c, micro_batches: 2, update: pass, "
        "ops: {conv1: {n: 2, on: [0, 1]}, fc3: {c: 2, on: [0, 1]}}}",
    ),
    "branches": (
        "branches",
        6,
        "{workers: 3, micro_batches: 2, ops: {conv1: {on: [0]}, pool: {on: [1]}, "
        "conv3: {on: [1]}, concat: {on: [2]}, fc5: {on: [0]}, concat_1: {on: [1]}}}",
    ),
    "batch norm": ("residual", 6, "{workers: 2, ops: {conv1: {n: 2, on: [0, 1]}, bn3: {on: [1]}}}"),
}


def program_of(name: str) -> Program:
    model, batch_size, text = PROGRAMS[name]
    return lower(GRAPHS[model], read_plan(text, GRAPHS[model]), batch_size)


def with_steps(program: Program, worker: int, steps: list[Step]) -> Program:
    return replace(
        program, steps=tuple(tuple(steps) if w == worker else own for w, own in enumerate(program.steps))
    )


def places(program: Program) -> list[tuple[int, int]]:
    return [(worker, i) for worker, steps in enumerate(program.steps) for i in range(len(steps))]


@any_program
@given(drawn_programs)
def test_every_program_of_lowering_passes(program: Program) -> None:
    dry_run(program)


@settings(any_program, max_examples=40)
@given(drawn_programs, st.data())
def test_a_step_that_is_removed_or_repeated_is_found(program: Program, data: st.DataObject) -> None:
    worker, i = data.draw(st.sampled_from(places(program)))
    steps = list(program.steps[worker])
    repeated = data.draw(st.booleans())
    changed = steps[: i + 1] + steps[i:] if repeated else steps[:i] + steps[i + 1 :]
    with pytest.raises(ProgramError):
        dry_run(with_steps(program, worker, changed))


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_step_that_is_removed_or_repeated_is_found(name: str) -> None:
    program = program_of(name)
    for worker, i in places(program):
        steps = list(program.steps[worker])
        for changed in (steps[:i] + steps[i + 1 :], steps[: i + 1] + steps[i:]):
            with pytest.raises(ProgramError):
                dry_run(with_steps(program, worker, changed))


def test_swapping_neighbours_is_found_unless_they_are_independent() -> None:
    """In a pipeline of two workers, only compute and messages that it does not need may be
    swapped."""
    program, independent = program_of("pipeline"), []
    for worker, i in places(program):
        steps = list(program.steps[worker])
        if i + 1 < len(steps):
            steps[i : i + 2] = [steps[i + 1], steps[i]]
            try:
                dry_run(with_steps(program, worker, steps))
            except ProgramError:
                continue
            independent.append(f"{worker}: {steps[1 + i]} {steps[i]}")
    assert independent == [
        "0: X0:0> F0:1",
        "0: B0:0 <X0:1",
        "1: F1:0 X0:1>",
        "1: X0:1> B1:0",
        "1: <X0:0 W0:1>",
        "1: <X0:1 U0",
    ]


def test_gradients_that_are_summed_too_early_or_not_at_all_are_found() -> None:
    program = program_of("pipeline")
    steps = list(program.steps[0])
    first, last = [i for i, step in enumerate(steps) if isinstance(step, Backward)]
    assert steps[last].sync == (1,)  # type: ignore[union-attr]
    early = list(steps)
    early[first], early[last] = replace(steps[first], sync=(1,)), replace(steps[last], sync=())  # type: ignore[type-var]
    with pytest.raises(
        ProgramError, match=r"^worker 0, B0:0: sums the gradients of U1 before all micro-batches"
    ):
        dry_run(with_steps(program, 0, early))
    early[first] = steps[first]
    with pytest.raises(ProgramError, match=r"^worker 0, U1: its gradients have not been summed"):
        dry_run(with_steps(program, 0, early))


def test_workers_that_wait_for_each_other_are_found() -> None:
    """In scheme b, worker i sends the features of pass i to all. Here worker i waits for those of
    worker i + 1 before it sends its own: each pair of workers agrees on the order, but no message
    is ever sent."""
    plan = read_plan(
        "{workers: 3, scheme: b, micro_batches: 3, ops: {conv1: {n: 3, on: [0, 1, 2]}, "
        "fc3: {c: 3, on: [0, 1, 2]}}}",
        GRAPHS["tower"],
    )
    program = lower(GRAPHS["tower"], plan, 9)
    (features,) = {index for index, _ in program.exchanges if program.exchanges[index, 0].value == "drop3"}
    blocked = program
    for worker, steps in enumerate(program.steps):
        first, own, last = (worker + 1) % 3, worker, (worker + 2) % 3
        early: list[Step] = [Start(features, first, False), Wait(features, first, False)]
        for m in (own, last):
            early += [Start(features, m, False), Wait(features, m, False)]
        assert str(steps[0]) == "F0"
        rest = [step for step in steps[1:] if step not in early]
        blocked = with_steps(blocked, worker, [steps[0], *early, *rest])
    with pytest.raises(
        ProgramError,
        match=r"^worker 0, W0:1>: deadlock: it waits for workers \[1\]; also waiting: "
        r"worker 1 at W0:2>, worker 2 at W0:0>",
    ):
        dry_run(blocked)


def test_the_error_names_worker_and_step_and_marks_it_in_the_schedule() -> None:
    program = program_of("pipeline")
    steps = list(program.steps[1])
    steps[1:3] = [steps[2], steps[1]]
    with pytest.raises(ProgramError) as raised:
        dry_run(with_steps(program, 1, steps))
    assert (raised.value.worker, raised.value.step) == (1, "F1:0")
    assert str(raised.value).splitlines() == [
        "worker 1, F1:0: fc3 reads drop3 before W0:0>",
        "worker 1, 11 steps:",
        "     0  X0:0>     drop3>fc3",
        "     1  F1:0      fc3 … loss   <-- here",
        "     2  W0:0>     drop3>fc3",
        "     3  X0:1>     drop3>fc3",
        "     4  B1:0      loss … fc3",
        "     5  <X0:0     drop3>fc3",
    ]


def test_an_order_that_two_workers_do_not_share_is_found() -> None:
    program = program_of("batch norm")
    steps = list(program.steps[1])
    place = steps.index(Update(1))
    steps[place : place + 2] = [Update(2), Update(1)]
    with pytest.raises(
        ProgramError, match=r"^worker 0, U1: its message weights of U1 meets weights of U2 of worker 1"
    ):
        dry_run(with_steps(program, 1, steps))
