"""Naming stragglers from made times: what is planted is named, and noise is not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from parallel.program import Program
from parallel.program.lowering import lower
from parallel.results.stragglers import Straggler
from parallel.runtime.instrumentation.phases import OWN, HostPhases, Phase
from parallel.strategies import DataParallel, ModelParallel, build_plan
from parallel.training.stragglers import BLOCKS, EpochTimes, Part, blocks, find_stragglers, part_of
from tests.support.small_models import graph_of

PART = Part(frozenset({"conv1"}), 1_000_000, 1000, 16, "here")
STEP_S = 0.1
TYPICAL_S = dict(zip(OWN, (0.002, 0.03, 0.05, 0.004), strict=True))
TRANSIT_S = 0.002


def made(
    workers: int, seed: int = 0, *, steps: int = 40, epochs: int = 2, noise: float = 0.2
) -> list[EpochTimes]:
    """Return times of equal workers with log-normal noise of each phase, and half of it for all at once."""
    random = np.random.default_rng(seed)
    times = []
    for epoch in range(epochs):
        typical = np.array([TYPICAL_S[phase] for phase in OWN])
        common = random.lognormal(0, noise / 2, (1, steps, 1))
        own = typical * common * random.lognormal(0, noise, (workers, steps, len(OWN)))
        transit = TRANSIT_S * random.lognormal(0, noise, (workers, steps, workers))
        transit[np.arange(workers), :, np.arange(workers)] = np.nan
        times.append(EpochTimes(epoch + 1, STEP_S, own, transit))
    return times


def named(parts: list[Part], times: list[EpochTimes]) -> list[tuple[int, str]]:
    found = find_stragglers(parts, times)
    assert found is not None
    return [(straggler.worker, straggler.cause) for straggler in found]


@pytest.mark.parametrize("workers", [2, 3, 4, 8])
@pytest.mark.parametrize("phase", OWN)
def test_a_slow_phase_is_named(workers: int, phase: Phase) -> None:
    times = made(workers)
    for epoch in times:
        epoch.own[1, :, phase] += 0.2 * STEP_S
    found = find_stragglers([PART] * workers, times)
    assert found is not None
    (straggler,) = found
    assert (straggler.worker, straggler.cause) == (1, phase.name.lower())
    assert straggler.lost_s == pytest.approx(0.2 * STEP_S, rel=0.15)
    assert straggler.share == pytest.approx(0.2, rel=0.15)
    assert straggler.epochs == (1, 2)


@pytest.mark.parametrize("workers", [2, 3, 4, 8])
@pytest.mark.parametrize("end", ["sent", "received"])
def test_slow_messages_are_named(workers: int, end: str) -> None:
    times = made(workers)
    for epoch in times:
        slow = epoch.transit[:, :, 1] if end == "sent" else epoch.transit[1]
        slow += 0.2 * STEP_S
    # Between two workers, what one sends is what the other receives: the sender is named.
    worker = 0 if end == "received" and workers == 2 else 1
    assert named([PART] * workers, times) == [(worker, "messages")]


def test_noise_is_not_named() -> None:
    for seed in range(60):
        workers = (2, 3, 4)[seed % 3]
        times = made(workers, seed, noise=(0.2, 0.6)[seed % 2], steps=(20, 64)[seed % 2])
        assert named([PART] * workers, times) == []


def test_a_delay_in_some_steps_is_named() -> None:
    times = made(3, steps=100)
    for epoch in times:
        epoch.own[2, ::10, Phase.LOADING] += STEP_S
    found = find_stragglers([PART] * 3, times)
    assert found is not None
    (straggler,) = found
    assert (straggler.worker, straggler.cause) == (2, "loading")
    assert straggler.lost_s == pytest.approx(0.1 * STEP_S, rel=0.15)


def test_a_single_pause_is_not_named_and_hides_nothing() -> None:
    times = made(2)
    for epoch in times:
        epoch.own[0, 7, Phase.FORWARD] += 20 * STEP_S
    assert named([PART] * 2, times) == []
    for epoch in times:
        epoch.own[1, :, Phase.FORWARD] += 0.2 * STEP_S
    assert named([PART] * 2, times) == [(1, "forward")]


def test_a_small_loss_is_not_named() -> None:
    times = made(2, noise=0.01)
    for epoch in times:
        epoch.own[1, :, Phase.BACKWARD] += 0.03 * STEP_S
    assert named([PART] * 2, times) == []


def test_a_delay_from_the_middle_on_is_named_with_its_epochs() -> None:
    times = made(4, epochs=30)
    for epoch in times[24:27]:
        epoch.own[3, :, Phase.FORWARD] += 0.2 * STEP_S  # 2 % of the run: seen in the epochs alone
    found = find_stragglers([PART] * 4, times)
    assert found is not None
    (straggler,) = found
    assert straggler.epochs == (25, 26, 27)
    assert straggler.lost_s == pytest.approx(0.2 * STEP_S, rel=0.15)
    assert straggler.sentence(30).endswith("in epochs 25 to 27 of 30")


def test_two_stragglers_are_named() -> None:
    times = made(4)
    for epoch in times:
        epoch.own[0, :, Phase.FORWARD] += 0.1 * STEP_S
        epoch.own[2, :, Phase.BACKWARD] += 0.3 * STEP_S
    assert named([PART] * 4, times) == [(2, "backward"), (0, "forward")]


def test_workers_with_other_parts_are_not_compared() -> None:
    times = made(3)
    for epoch in times:
        epoch.own[2, :, Phase.FORWARD] += STEP_S
    larger = dataclasses.replace(PART, multiply_adds=3_000_000)
    other = dataclasses.replace(PART, ops=frozenset({"fc2"}))
    assert named([PART, PART, larger], times) == named([PART, PART, other], times) == []
    assert named([PART, PART, PART], times) == [(2, "forward")]


def test_a_slightly_larger_part_may_take_longer() -> None:
    times = made(3, noise=0.01)
    for epoch in times:
        epoch.own[0, :, Phase.BACKWARD] *= 1.1
    small = dataclasses.replace(PART, multiply_adds=10)
    large = dataclasses.replace(PART, multiply_adds=11)
    assert named([large, small, small], times) == []
    assert named([small, small, small], times) == [(0, "backward")]


def test_what_cannot_be_judged_is_none() -> None:
    parts = [PART, dataclasses.replace(PART, ops=frozenset({"fc2"}), images=0)]
    assert find_stragglers([PART], made(1)) is None
    assert find_stragglers(parts, made(2)) is None
    assert find_stragglers([PART, PART], made(2, steps=4)) is None  # eight steps
    assert find_stragglers([PART, PART], made(2, steps=5)) == ()
    assert find_stragglers([PART, PART], []) is None


def test_the_host_is_named_where_there_are_several() -> None:
    times = made(2)
    for epoch in times:
        epoch.own[1, :, Phase.FORWARD] += 0.2 * STEP_S
    found = find_stragglers([PART, dataclasses.replace(PART, host="there")], times)
    assert found is not None
    assert found[0].sentence(2).startswith("worker 1 on host there is slower in forward than workers with")


def test_parts_follow_the_plan() -> None:
    graph = graph_of("tower")

    def parts(program: Program | None) -> list[Part]:
        return [part_of(program, worker, 4, 6, "here") for worker in range(2)]

    equal = parts(lower(graph, build_plan(graph, 2, DataParallel()), 12))
    assert equal[0].ops == equal[1].ops and equal[0].multiply_adds == equal[1].multiply_adds > 0
    pipeline = parts(lower(graph, build_plan(graph, 2, ModelParallel()), 12))
    assert not pipeline[0].ops & pipeline[1].ops
    assert parts(None)[0] == parts(None)[1]


def test_long_epochs_are_reported_as_means() -> None:
    seconds = np.arange(1000.0).reshape(-1, 1)
    means = blocks(seconds)
    assert means.shape == (BLOCKS, 1) and means.mean() == pytest.approx(seconds.mean(), rel=0.02)
    assert np.array_equal(blocks(seconds[:BLOCKS]), seconds[:BLOCKS])


def test_phases_exclude_those_inside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    phases = HostPhases()
    for step in range(2):
        phases.enter(Phase.FORWARD)
        now += 1
        before = phases.enter(Phase.WAITING)
        now += 10
        phases.enter(before)
        now += 2
        phases.enter(Phase.BACKWARD)
        now += 5 + step
        phases.enter(Phase.LOADING)
        now += 0.5
        phases.enter(Phase.OTHER)
        now += 100
        phases.end_step()
    assert phases.seconds().tolist() == [[0.5, 3.0, 5.0, 0.0], [0.5, 3.0, 6.0, 0.0]]
    phases.reset()
    assert phases.seconds().shape == (0, len(OWN))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"worker": -1}, "worker=-1 must be at least 0"),
        ({"cause": "weather"}, "cause=weather is not known; it must be one of loading, forward"),
        ({"lost_s": 0.0}, "lost_s=0.0 must be a time above 0 s"),
        ({"share": 1.5}, "share=1.5 must be a fraction above 0, at most 1"),
        ({"epochs": ()}, "must name at least one epoch"),
        ({"epochs": (2, 1)}, "must ascend"),
        ({"epochs": (0,)}, "epochs=0 must be at least 1"),
    ],
)
def test_invalid_stragglers_are_rejected(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(STRAGGLER, **change)  # type: ignore[arg-type]


STRAGGLER = Straggler(worker=2, cause="backward", lost_s=0.041, share=0.18, epochs=(1, 2, 3))


def test_the_sentence() -> None:
    assert STRAGGLER.sentence(3) == (
        "worker 2 is slower in backward than workers with the same part: 41 ms a step, 18 % of the time"
    )
    some = dataclasses.replace(STRAGGLER, epochs=(1, 3, 4))
    assert some.sentence(5).endswith("18 % of the time, in epochs 1, 3 to 4 of 5")
