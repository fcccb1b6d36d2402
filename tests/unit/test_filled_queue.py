"""Measurements on a device that runs behind the host return the device's times, not those of launches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from parallel.calibration.launches import cost, launch_scale
from parallel.calibration.loading import hidden_share, loading_overlaps, loop_s
from parallel.calibration.messages import LONGER, QUEUED, slowdown_of
from parallel.calibration.op_times import OpTimer, Times
from parallel.calibration.shapes import model_runs, op_shapes
from parallel.calibration.step_overhead import IsolatedStep, step_passes
from parallel.calibration.stopwatch import (
    LONGEST_HOLD_S,
    MARGIN,
    SHORTEST_HOLD_S,
    TRIES,
    Hold,
    Stopwatch,
    next_hold,
    seconds_together,
)
from parallel.cluster.op_key import OpKey
from parallel.cluster.table import BACKWARD, FORWARD, PARAMETERS
from parallel.runtime.instrumentation.timer import DeviceTimer, HostTimer
from tests.support.gpu import needs_gpu
from tests.support.simulated_device import SimulatedDevice
from tests.support.small_models import graph_of

CPU = torch.device("cpu")
LAUNCH_S, KERNEL_S = 20e-6, 4e-6
"""The host needs longer to launch a kernel than the device to run it: small ops."""
CYCLES_PER_S = 1.4e9


def simulated(*, fills: bool = True) -> tuple[SimulatedDevice, Stopwatch]:
    """Return a device and its stopwatch, which fills the queue or takes laps as they come."""
    device = SimulatedDevice(LAUNCH_S)
    timer = DeviceTimer(device.event)
    with device.clock():
        hold = Hold(timer, lambda cycles: device.kernel(cycles / CYCLES_PER_S))
    return device, Stopwatch(timer, hold if fills else None)


def test_a_hold_is_as_long_as_asked_on_a_device_that_was_idle() -> None:
    """Its clock is five times slower until it has worked for 20 ms."""
    device = SimulatedDevice(LAUNCH_S)
    timer, busy_s = DeviceTimer(device.event), 0.0

    def spin(cycles: int) -> None:
        nonlocal busy_s
        seconds = cycles / (CYCLES_PER_S if busy_s > 0.02 else CYCLES_PER_S / 5)
        busy_s += seconds
        device.kernel(seconds)

    with device.clock():
        hold = Hold(timer, spin)
        begin = timer.mark()
        hold(0.01)
        assert timer.seconds(timer.mark()) - timer.seconds(begin) == pytest.approx(0.01, rel=0.05)


class Kernels(TorchDispatchMode):
    """Every operation that torch dispatches enqueues a kernel of the simulated device."""

    def __init__(self, device: SimulatedDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._device.kernel(KERNEL_S)
        return function(*args, **(kwargs or {}))


def op_times(*, fills: bool) -> Times:
    graph = graph_of("tower")
    device, watch = simulated(fills=fills)
    timer = OpTimer(graph, CPU, "fp32", True, 2, watch)
    with device.clock(), Kernels(device):
        timer.run(model_runs(op_shapes(graph, 8, 2, (1,)))[0])
    return timer.times.collect()


def test_ops_have_the_times_of_the_device() -> None:
    times = op_times(fills=True)
    assert {name for (_, name), _ in times.ops} == {FORWARD, BACKWARD, PARAMETERS}
    assert times.counts
    for (key, seconds), (same, launch_s) in zip(times.ops, times.launches, strict=True):
        kernels = round(launch_s / LAUNCH_S)  # none for a view
        assert key == same and launch_s == pytest.approx(kernels * LAUNCH_S)
        assert seconds == pytest.approx(kernels * KERNEL_S, rel=1e-3)
    assert sum(seconds > 0 for _, seconds in times.ops) > 20


def test_without_a_filled_queue_they_would_have_those_of_the_launches() -> None:
    times = op_times(fills=False)
    for (_, seconds), (_, launch_s) in zip(times.ops, times.launches, strict=True):
        kernels = round(launch_s / LAUNCH_S)
        assert seconds > 3 * kernels * KERNEL_S or not kernels


def test_runs_that_are_not_measured_hold_nothing() -> None:
    graph = graph_of("tower")
    device, watch = simulated()
    timer = OpTimer(graph, CPU, "fp32", True, 2, watch)
    shapes = model_runs(op_shapes(graph, 8, 2, (1,)))[0]
    with device.clock(), Kernels(device):
        timer.run(shapes, measure=False)
    assert not any(timer.times.collect())
    assert device.ends - device.now < 100 * KERNEL_S, "the device keeps up"


def test_work_that_outlasts_its_hold_is_not_timed() -> None:
    device, watch = simulated()
    laps = []
    with device.clock():
        for _ in range(2):
            begin = watch.begin()
            for _ in range(200):
                device.kernel(KERNEL_S)
            laps.append(watch.end(begin))
    launch_s = 200 * LAUNCH_S
    assert launch_s > SHORTEST_HOLD_S
    assert laps[0] == (None, pytest.approx(launch_s))
    assert laps[1] == (pytest.approx(200 * KERNEL_S, rel=1e-3), pytest.approx(launch_s))


@pytest.mark.parametrize(
    ("hold_s", "enqueued_s", "filled", "then_s"),
    [
        (0.004, 0.002, True, 0.002 * MARGIN),
        (0.004, 0.0, True, 0.002),
        (0.004, 0.001, False, 0.008),
        (0.004, 0.010, False, 0.010 * MARGIN),
        (0.0005, 0.0, True, SHORTEST_HOLD_S),
        (0.15, 0.01, False, LONGEST_HOLD_S),
        (0.001, 5.0, False, LONGEST_HOLD_S),
    ],
)
def test_the_next_hold(hold_s: float, enqueued_s: float, filled: bool, then_s: float) -> None:
    assert next_hold(hold_s, enqueued_s, filled) == pytest.approx(then_s)


def test_holds_recover_from_a_slow_launch() -> None:
    hold_s = next_hold(SHORTEST_HOLD_S, 2.0, filled=False)
    for _ in range(20):
        hold_s = next_hold(hold_s, 50e-6, filled=True)
    assert hold_s == SHORTEST_HOLD_S


def test_a_cpu_is_timed_as_it_is() -> None:
    watch = Stopwatch(HostTimer())
    assert not watch.behind
    lap = watch.end(watch.begin(lambda: pytest.fail("nothing is held")))
    assert lap.seconds is not None and 0 <= lap.seconds <= lap.launch_s < 1


class TestTogether:
    def world(self, others: list[float | None]) -> Mock:
        """Return a world of two workers; `others` are the laps of the other one."""
        answers = iter(others)
        return Mock(gather=lambda own: [own, next(answers)])

    def test_all_repeat_what_one_could_not_time(self) -> None:
        device, watch = simulated()
        done: list[str] = []
        with device.clock():
            seconds = seconds_together(
                watch,
                self.world([None, 0.5]),
                lambda: (done.append("work"), device.kernel(KERNEL_S)),
                align=lambda: (done.append("align"), device.kernel(0.010)),
                finish=lambda: done.append("finish"),
            )
        assert seconds == [pytest.approx(KERNEL_S, rel=1e-3), 0.5]
        assert done == ["align", "work", "finish"] * 2

    def test_work_that_waits_for_the_device_is_an_error(self) -> None:
        device, watch = simulated()

        def waits() -> None:
            device.kernel(KERNEL_S)
            device.synchronize()

        with device.clock(), pytest.raises(RuntimeError, match="the work waits for the device"):
            seconds_together(watch, self.world([0.5] * TRIES), waits, align=lambda: None)

    @pytest.mark.parametrize("message_s", [0.005, 5.0])
    def test_a_message_slows_computing_down(self, message_s: float) -> None:
        """However long it is: the queue has room for no more than a part of the computing."""
        device, watch = simulated()
        under_way = [False]

        def start() -> Callable[[], None]:
            under_way[0] = True
            return lambda: under_way.__setitem__(0, False)

        def compute() -> None:
            for _ in range(40):
                device.kernel(30e-6 if under_way[0] else 25e-6)

        world = Mock(gather=lambda own: [own])
        with device.clock():
            share = slowdown_of(start, message_s, world, watch, compute, rounds=3)
        runs = min(QUEUED, math.ceil(LONGER * message_s / 0.001))
        assert share == pytest.approx(runs * 0.0002 / min(message_s, runs * 0.001), rel=1e-2)


def test_a_step_is_timed_as_in_an_epoch() -> None:
    """The host's work on a step is hidden behind the step before if the device needs longer."""
    device, watch = simulated(fills=False)
    step = IsolatedStep.__new__(IsolatedStep)
    prepares_s, kernels, kernel_s = 0.001, 50, 0.001

    def train(batch: object) -> None:
        device.host(prepares_s)
        for _ in range(kernels):
            device.kernel(kernel_s)

    vars(step).update(_watch=watch, train=train, batch=None)
    with device.clock():
        assert step.launches and step.run() == pytest.approx(kernels * kernel_s, rel=1e-3)
        assert step.launch_s() == pytest.approx(prepares_s + kernels * LAUNCH_S)
        kernel_s = KERNEL_S
        host_bound_s = prepares_s + kernels * LAUNCH_S
        assert step.run() == pytest.approx(host_bound_s, rel=1e-3), "the device waits for the host"


class TestCosts:
    KEYS = tuple(
        (OpKey.of(op, part), name)
        for op, part, name in step_passes(graph_of("tower"), 8)
        if name in (FORWARD, BACKWARD)
    )[:4]

    def test_launches_add_up_to_those_of_a_step(self) -> None:
        launches = {key: [1.0 * i, 1.0 * i, 1.0 * i] for i, key in enumerate(self.KEYS, start=1)}
        assert launch_scale(5.0, self.KEYS, launches) == pytest.approx(0.5)
        del launches[self.KEYS[0]]  # counts as the mean of the others, 3
        assert launch_scale(6.0, self.KEYS, launches) == pytest.approx(0.5)
        assert launch_scale(6.0, self.KEYS, {}) == 1.0

    def test_the_slower_one_counts(self) -> None:
        device, launches = [1e-5, 1.1e-5, 1.2e-5], [4e-5, 4e-5, 6e-5]
        assert cost(device, launches, scale=0.1).mean_s == pytest.approx(1.1e-5)
        by_host = cost(device, launches, scale=0.5)
        assert by_host.mean_s == pytest.approx(0.5 * 14e-5 / 3, rel=1e-3)
        assert by_host.low_s == pytest.approx(2e-5) and by_host.count == 3


@pytest.mark.parametrize(
    ("loading_s", "computing_s", "both_s", "hidden"),
    [
        (0.03, 0.10, 0.10, 1.0),
        (0.03, 0.10, 0.13, 0.0),
        (0.10, 0.03, 0.115, 0.5),
        (0.03, 0.10, 0.14, 0.0),
        (0.03, 0.10, 0.09, 1.0),
    ],
)
def test_what_is_hidden(loading_s: float, computing_s: float, both_s: float, hidden: float) -> None:
    assert hidden_share(loading_s, computing_s, both_s) == pytest.approx(hidden)


@pytest.mark.parametrize(
    ("times", "overlaps", "words"),
    [
        ((0.03, 0.10, 0.11), True, "both 0.11 s: 67% of the shorter time is hidden"),
        ((0.03, 0.10, 0.12), False, "33% of the shorter"),
        ((0.10, 0.03, 0.11), True, "67% of the shorter"),
        ((0.001, 0.10, 0.09), False, "too different to see"),
        ((0.10, 0.001, 0.09), False, "too different to see"),
    ],
)
def test_whether_loading_overlaps(times: tuple[float, float, float], overlaps: bool, words: str) -> None:
    found, sentence = loading_overlaps(*times)
    assert found is overlaps and words in sentence


@pytest.mark.parametrize(("behind", "hidden"), [(True, 1.0), (False, 0.0)])
def test_loading_overlaps_what_the_host_does_not_wait_for(behind: bool, hidden: float) -> None:
    device, watch = simulated(fills=False)

    def load() -> None:
        device.host(0.03)

    def train() -> None:
        device.kernel(0.1)
        if not behind:
            device.synchronize()

    with device.clock():
        times = [loop_s(watch, step, budget_s=5.0) for step in (load, train, lambda: (load(), train()))]
    assert times[:2] == [pytest.approx(0.03, rel=0.01), pytest.approx(0.1, rel=0.01)]
    assert hidden_share(*times) == pytest.approx(hidden, abs=0.05)
    assert loading_overlaps(*times)[0] is behind


@needs_gpu
def test_on_a_gpu_small_ops_take_less_than_their_launch() -> None:
    graph = graph_of("tower")
    timer = OpTimer(graph, torch.device("cuda"), "fp32", True, 1)
    shapes = model_runs(op_shapes(graph, 8, 1, (1,)))[0]
    for _ in range(3):
        timer.run(shapes)
        times = timer.times.collect()
    assert len(times.ops) > len(graph.names), "nearly all passes found their queue filled"
    assert sum(seconds for _, seconds in times.ops) < sum(seconds for _, seconds in times.launches)
