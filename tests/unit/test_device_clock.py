"""The clock on a device that runs behind the host: what counts as waiting, and when events are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from unittest.mock import MagicMock, Mock

import numpy as np
import pytest
import torch

from parallel.data.loader import Batch
from parallel.runtime.instrumentation.clock import Clock
from parallel.runtime.instrumentation.phases import OWN, DevicePhases, Phase
from parallel.runtime.instrumentation.timer import BATCH, UNREAD, DeviceTimer, HostTimer
from parallel.training.evaluation import Scores
from parallel.training.loop import Loop
from tests.support.gpu import needs_gpu
from tests.support.simulated_device import QUEUE, SimulatedDevice, SimulatedEvent

CPU = torch.device("cpu")
LAUNCH_S = 0.001
STEP_S = 0.100
CROP_S = 0.004
"""The device's time to crop a batch, the first kernel that needs it."""


class Run:
    """Epochs of a loop as `training.loop` has it, on a simulated device."""

    def __init__(self, *, phases: bool = True) -> None:
        self.device = SimulatedDevice(LAUNCH_S)
        self.clock = Clock(CPU, phases=phases, timer=DeviceTimer(self.device.event))

    def epoch(self, steps: int, reading_s: float, compute_s: float, late_s: float = 0.0) -> float:
        """Train and return the time of the epoch; `split` is then that of this worker.

        `reading_s`: what the loader takes for a batch. `late_s`: the peer starts the message of each
        step so much later than this worker, and so ends the epoch after it.
        """
        device, clock = self.device, self.clock
        device.synchronize()
        clock.reset()
        origin = ready = device.now
        peer_starts = []
        for _ in range(steps):
            with clock.loading():
                ready += reading_s
                device.host(max(0.0, ready - device.now))
                clock.arrived()
                device.kernel(CROP_S)
            clock.phases.enter(Phase.FORWARD)
            device.kernel(compute_s / 2)
            clock.phases.enter(Phase.BACKWARD)
            device.kernel(compute_s / 2)
            if late_s:
                clock.started(("sum", 0))
                peer_starts.append(max(device.ends, device.now) + late_s - origin)
                with clock.waiting(("sum", 0), [1]):
                    device.wait_until(origin + peer_starts[-1])
                    device.kernel(0.010)  # the transfer
            clock.phases.enter(Phase.OTHER)
            clock.phases.end_step()
        clock.finished()
        device.synchronize()
        device.host(late_s)
        clock.ended()
        seconds = device.now - origin
        starts = [clock.starts, {("sum", 0): np.array(peer_starts)}]
        self.split = clock.split(seconds, starts)
        assert sum(vars(self.split).values()) == pytest.approx(seconds), "the parts are the whole"
        return seconds


def test_the_backlog_of_a_busy_device_is_neither_waiting_nor_idle() -> None:
    run = Run()
    # The host enqueues all steps while the device is at the first ones.
    seconds = run.epoch(steps=10, reading_s=0.002, compute_s=STEP_S)
    first_s = 0.002 + LAUNCH_S  # the first batch, and until its first kernel
    assert seconds == pytest.approx(10 * (STEP_S + CROP_S) + first_s)
    assert run.split.data_wait_s == pytest.approx(0.002, abs=1e-6), "the first batch only"
    assert run.split.idle_s == 0 == run.split.communication_s
    assert run.split.compute_s == pytest.approx(seconds - 0.002, abs=1e-6)
    loading = run.clock.phases.seconds()[:, Phase.LOADING]
    assert loading == pytest.approx([0.002] + [0.0] * 9, abs=1e-6)


def test_a_wait_for_data_is_the_time_for_which_the_device_has_nothing_to_do() -> None:
    run = Run()
    seconds = run.epoch(steps=10, reading_s=0.150, compute_s=STEP_S)
    assert seconds == pytest.approx(10 * 0.150 + STEP_S + CROP_S + LAUNCH_S, abs=1e-6)
    # The device's own work starts with a kernel's launch, which the host begins when the batch is there.
    gap_s = 0.150 - STEP_S - CROP_S - LAUNCH_S
    assert run.split.data_wait_s == pytest.approx(0.150 + 9 * gap_s, abs=1e-6)
    assert run.split.idle_s == 0
    phases = run.clock.phases.seconds()
    assert phases[1:, Phase.LOADING] == pytest.approx(gap_s, abs=1e-6)
    assert phases[:, Phase.FORWARD] == pytest.approx(STEP_S / 2, abs=1e-6)
    assert phases[:, Phase.BACKWARD] == pytest.approx(STEP_S / 2, abs=1e-6)
    loads = run.clock.loads
    assert [begin for begin, _ in loads[1:]] == pytest.approx(
        [end + 0.150 - gap_s for _, end in loads[:-1]], abs=1e-6
    ), "begins when the device has finished the step before"


def test_a_late_peer_makes_the_worker_idle() -> None:
    run = Run()
    seconds = run.epoch(steps=10, reading_s=0.002, compute_s=STEP_S, late_s=0.030)
    assert run.split.idle_s == pytest.approx(10 * 0.030 + 0.030, abs=1e-5), "and at the end of the epoch"
    assert run.split.communication_s == pytest.approx(10 * 0.010, abs=1e-5)
    assert run.split.data_wait_s == pytest.approx(0.002, abs=1e-6)
    assert seconds == pytest.approx(0.003 + 10 * (CROP_S + STEP_S + 0.030 + 0.010) + 0.030, abs=1e-5)


class Stream(Run):
    """What `Loop` asks of engine, loader and world, on the simulated device."""

    splits_time, bytes_sent = True, 0

    def __init__(self, reading_s: float, late_s: float) -> None:
        super().__init__()
        self.reading_s, self.late_s, self.steps = reading_s, late_s, 10

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        ready = self.device.now
        for _ in range(self.steps):
            ready += self.reading_s
            self.device.host(max(0.0, ready - self.device.now))
            self.clock.arrived()
            self.device.kernel(CROP_S)
            yield Batch(torch.zeros(1), torch.zeros(1))

    def train_step(self, *batch: torch.Tensor, step: int, lr: float) -> torch.Tensor:
        self.device.kernel(STEP_S)
        return torch.zeros(())

    def complete(self) -> None:
        """There are no gathers to wait for."""

    def barrier(self) -> None:
        self.device.synchronize()
        self.device.host(self.late_s)


@pytest.mark.parametrize(
    ("reading_s", "late_s", "waits_s", "idle_s"),
    [(0.002, 0.0, 0.002, 0.0), (0.150, 0.0, 0.150 + 9 * 0.045, 0.0), (0.002, 0.5, 0.002, 0.5)],
    ids=["device-bound", "loader-bound", "late peer"],
)
def test_the_training_loop(
    monkeypatch: pytest.MonkeyPatch, reading_s: float, late_s: float, waits_s: float, idle_s: float
) -> None:
    stream = Stream(reading_s, late_s)
    loop = Loop.__new__(Loop)
    world = Mock(device=CPU, rank=0, size=1, barrier=stream.barrier, gather=lambda value: [value])
    world.sum = lambda tensor: tensor
    train = MagicMock(epoch=stream.batches)
    train.__len__.return_value = stream.steps
    vars(loop).update(
        _world=world,
        _engine=stream,
        _train=train,
        _val=None,
        _config=Mock(
            batch_size=1, epochs=1, schedule="constant", lr=0.1, lr_scaling="none", base_batch_size=1
        ),
        _begun=None,
        _check=None,
        _trace=None,
        _load=Mock(),
        _progress=Mock(),
        _step_loss=Mock(after=Mock(return_value=None)),
        _late_loss=Mock(),
        step_times=Mock(),
    )
    monkeypatch.setattr("parallel.training.loop.validate", lambda *_: Scores(1.0, 0.5, 0.5))
    with stream.device.clock():
        row = loop._epoch(0, (), Mock(on=False), None)
    assert row.data_wait_s == pytest.approx(waits_s, abs=1e-5)
    assert row.idle_s == pytest.approx(idle_s, abs=1e-5)
    computed_s = row.seconds - waits_s - idle_s
    assert row.compute_s == pytest.approx(computed_s, abs=1e-5)
    assert computed_s == pytest.approx(stream.steps * (STEP_S + CROP_S + LAUNCH_S), abs=0.010)
    assert loop.step_times.note.call_args.args[1] == pytest.approx(row.seconds / stream.steps)


def test_an_epoch_begins_at_its_reset() -> None:
    run = Run()
    for _ in range(2):
        seconds = run.epoch(steps=3, reading_s=0.002, compute_s=STEP_S)
        assert run.split.data_wait_s == pytest.approx(0.002, abs=1e-6) and seconds < 4 * STEP_S
        assert run.clock.phases.seconds().shape == (3, len(OWN))


def test_events_of_a_long_epoch_are_used_again() -> None:
    run = Run()
    steps = 2 * UNREAD
    seconds = run.epoch(steps=steps, reading_s=0.002, compute_s=STEP_S)
    assert run.device.events <= UNREAD + 2 * QUEUE + 2 * BATCH, "the backlog holds few"
    assert seconds == pytest.approx(steps * (STEP_S + CROP_S) + 0.003)
    assert run.clock.phases.seconds()[-1, Phase.FORWARD] == pytest.approx(STEP_S / 2, abs=1e-6)


def test_the_host_never_waits_within_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run()

    def waits(event: object) -> None:
        raise AssertionError("the host waits for the device")

    monkeypatch.setattr("tests.support.simulated_device.SimulatedEvent.synchronize", waits)
    steps = 2 * UNREAD  # with 8 marks each
    for _ in range(steps):
        with run.clock.loading():
            run.clock.arrived()
        run.clock.phases.enter(Phase.FORWARD)
        run.device.kernel(LAUNCH_S / 2)  # the device keeps up, so that events are read meanwhile
        run.clock.phases.end_step()
    assert run.device.events < 2 * UNREAD
    assert run.device.now == pytest.approx(steps * LAUNCH_S)


def test_times_far_into_an_epoch_are_as_fine_as_at_its_start() -> None:
    device = SimulatedDevice()
    timer = DeviceTimer(device.event)
    for _ in range(5_000):
        device.kernel(2.0)
        timer.mark()
    begin = timer.mark()
    device.kernel(20e-6)
    assert timer.seconds(timer.mark()) - timer.seconds(begin) == pytest.approx(20e-6, rel=1e-2)
    assert timer.seconds(begin) == pytest.approx(10_000)


def test_what_has_passed() -> None:
    device = SimulatedDevice()
    timer = DeviceTimer(device.event)
    device.kernel(1.0)
    mark = timer.mark()
    assert not timer.passed(mark) and not timer.known(mark)
    device.host(1.0)
    assert timer.passed(mark) and not timer.known(mark)
    assert timer.seconds(mark) == 1.0 and timer.known(mark) and timer.passed(mark)
    here = HostTimer()
    assert here.passed(here.mark()) and here.known(here.mark()) and 0 <= here.seconds(here.mark()) < 10


def test_marks_of_a_slower_stream_are_neither_waited_for_nor_read_too_early() -> None:
    device, side = SimulatedDevice(), SimulatedDevice()
    recording = device
    timer = DeviceTimer(lambda: TwoStreams(device, side, lambda: recording))
    side.kernel(50.0)
    recording = side
    late = timer.mark()
    recording = device
    device.kernel(1.0)
    mark = timer.mark()
    assert timer.seconds(mark) == 1.0
    assert device.now == 1.0 and not timer.known(late) and not timer.passed(late)
    for _ in range(UNREAD + 2 * BATCH):  # which reads the oldest that have been passed
        timer.mark()
    assert not timer.known(late)
    assert timer.seconds(late) == 50.0 and device.now == 50.0


class TwoStreams(SimulatedEvent):
    """An event of one of two streams, whose hosts are the same."""

    def __init__(
        self, device: SimulatedDevice, side: SimulatedDevice, now: Callable[[], SimulatedDevice]
    ) -> None:
        super().__init__(device)
        self._side, self._recording = side, now

    def record(self) -> None:
        self._side.now = self._device.now
        self._at = max(self._recording().ends, self._device.now)


@pytest.mark.parametrize("behind", [True, False])
def test_phases_of_steps(behind: bool) -> None:
    device = SimulatedDevice()
    timer = DeviceTimer(device.event)
    phases = DevicePhases(timer)
    for _ in range(3):
        phases.enter(Phase.FORWARD)
        device.kernel(2)
        before = phases.enter(Phase.WAITING)
        device.kernel(10)
        phases.enter(before)
        device.kernel(3)
        phases.end_step()
        device.kernel(100)
        if not behind:
            device.synchronize()
            timer.seconds(timer.mark())
    assert phases.seconds().tolist() == [[0, 5, 0, 0]] * 3
    assert phases.steps == 3


@needs_gpu
def test_on_a_gpu_the_backlog_is_no_wait() -> None:
    device = torch.device("cuda")
    clock = Clock(device, phases=True)
    matrix = torch.randn(4096, 4096, device=device)
    matrix @ matrix
    torch.cuda.synchronize()
    clock.reset()
    for _ in range(20):
        with clock.loading():
            pass
        clock.phases.enter(Phase.FORWARD)
        for _ in range(5):
            matrix @ matrix
        clock.phases.end_step()
    clock.finished()
    torch.cuda.synchronize()
    clock.ended()
    split = clock.split(clock.seconds(clock.now()), [clock.starts])
    forward_s = clock.phases.seconds()[:, Phase.FORWARD].sum()
    assert split.data_wait_s < 0.05 * forward_s and split.idle_s < 0.05 * forward_s
    assert split.compute_s == pytest.approx(forward_s, rel=0.1)
