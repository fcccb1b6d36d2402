"""The watch knows what the streams of a device wait for, and names the worker whose device or host hangs."""

from __future__ import annotations

import itertools
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import DistBackendError

from parallel.runtime.communication.transport import Receive, Transport
from parallel.runtime.communication.world import World
from parallel.runtime.failure.activity import Activity
from parallel.runtime.failure.errors import DeviceFailed, InstructionFailed, WorkerLost
from parallel.runtime.failure.null_watch import NullWatch
from parallel.runtime.failure.running_clock import RunningClock
from parallel.runtime.failure.stream_marks import MOST_PENDING, StreamMarks
from parallel.runtime.failure.watch import Watch
from parallel.runtime.instrumentation.clock import Clock
from tests.support.imitated_device import HANGS, ImitatedDevice, ImitatedStore, Stream

TIMEOUT_S = 3.0
STEP_S = 0.05


class SetClock(RunningClock):
    """A clock that the test sets."""

    now, stopped = 100.0, False

    def __call__(self) -> float:
        return self.now

    @property
    def was_stopped(self) -> bool:
        return self.stopped


class Worker:
    """A worker whose host runs ahead of its device."""

    def __init__(self, workers: Workers, rank: int) -> None:
        self.device = ImitatedDevice(workers.clock.now)
        self.watch = Watch(rank, workers.size, TIMEOUT_S, 60.0, self.device, workers.clock)
        self.watch.started()
        self.store = ImitatedStore(rank, workers.shared)
        self._workers, self._rank = workers, rank

    @property
    def stream(self) -> Stream:
        return self.device.now_stream

    def step(self, step: int, seconds: float = STEP_S) -> None:
        """Enqueue a step: compute, send to the next worker, receive from the one before."""
        self.watch.at(f"step {step}")
        self.stream.works(seconds)
        before = (self._rank - 1) % self._workers.size
        self.stream.waits(
            lambda: self._workers.sent.append((self._rank, step)) is None
        )  # true: it only sends
        self.watch.waits((step, 0, ">"), before)
        self.stream.waits(lambda: (before, step) in self._workers.sent or self.device.aborted)
        self.watch.goes_on()


class Workers:
    """Workers that pass messages in a ring, and their time."""

    def __init__(self, size: int = 3) -> None:
        self.clock, self.size = SetClock(), size
        self.sent: list[tuple[int, int]] = []
        self.shared: dict[object, object] = {"size": size}
        self.all = [Worker(self, rank) for rank in range(size)]

    def run(self, seconds: float) -> str:
        """Let time pass; return the blame."""
        for tick in range(round(seconds / 0.1)):
            self.clock.now += 0.1
            for _ in range(3):  # a message passes all workers
                for worker in self.all:
                    worker.stream.run(self.clock.now)
            for worker in self.all:
                worker.watch.ask_device()
                if tick % 5 == 0:
                    worker.watch.beat(worker.store)  # type: ignore[arg-type]
        return str(self.shared.get("blame", ""))


def test_the_worker_whose_device_hangs_is_named_and_not_those_whose_streams_wait_for_it() -> None:
    workers = Workers()
    for step, worker in itertools.product(range(20), workers.all):
        worker.step(step, HANGS if worker is workers.all[1] and step == 7 else STEP_S)
    for worker in workers.all:  # every host says that it waits, and only devices know for what
        worker.watch.waits(("barrier",), -1)
    assert workers.run(TIMEOUT_S) == ""
    blame = workers.run(3.0)
    assert blame.startswith(
        "worker 1 has not reached the point where others wait for it: in step 7 it has been computing for "
    ), blame


def test_the_worker_whose_host_hangs_is_named_though_its_device_is_idle() -> None:
    workers = Workers()
    for step, worker in itertools.product(range(20), workers.all):
        if worker is not workers.all[2] or step < 4:
            worker.step(step)
    workers.all[2].watch.at("step 4")
    workers.all[2].watch.does("loading data")
    blame = workers.run(6.0)
    assert blame.startswith("worker 2 has not reached the point"), blame
    assert "in step 4 it has been loading data for " in blame


def test_a_long_queue_of_healthy_steps_blames_nobody_and_is_forgotten() -> None:
    workers = Workers()
    for step, worker in itertools.product(range(400), workers.all):
        worker.step(step)
    for worker in workers.all:
        worker.watch.waits(("gather",), -1)  # from the host's view for 20 s, far longer than the timeout
    assert workers.run(19.0) == ""
    for worker in workers.all:
        worker.watch.goes_on()
    assert workers.run(4.0) == ""
    for worker in workers.all:
        assert len(worker.stream) == 0
        worker.step(400)
    events = [worker.device.events for worker in workers.all]
    assert workers.run(1.0) == ""
    for worker in workers.all:
        worker.step(401)
    assert [worker.device.events for worker in workers.all] == events, "events are used again"


def test_a_slow_device_is_no_hang() -> None:
    workers = Workers()
    for step, worker in itertools.product(range(6), workers.all):
        worker.step(step, 2.5 if worker is workers.all[1] else STEP_S)
    for worker in workers.all:
        worker.watch.waits(("barrier",), -1)
    assert workers.run(14.0) == ""


def test_devices_that_wait_for_each_other_are_all_named() -> None:
    workers = Workers(2)
    for worker in workers.all:
        worker.watch.at("step 3")
        worker.watch.waits((3, 0, ">"), 1 - workers.all.index(worker))
        worker.stream.waits(lambda: False)
        worker.watch.goes_on()
    blame = workers.run(6.0)
    assert blame.startswith("all workers wait for each other"), blame
    assert "worker 0, step 3: waiting for worker 1: exchange 3 of micro-batch 0, forward; worker 1" in blame


def test_after_the_verdict_communicators_are_aborted_and_the_next_note_ends_the_worker() -> None:
    workers = Workers(2)
    for worker in workers.all:
        worker.step(0, HANGS if worker is workers.all[1] else STEP_S)
    assert workers.run(6.0)
    for worker in workers.all:
        deadline = time.monotonic() + 10.0
        while not worker.device.aborted and time.monotonic() < deadline:
            time.sleep(0.01)
        assert worker.device.aborted
    watch = workers.all[0].watch
    for note in (lambda: watch.at("step 1"), lambda: watch.waits(("sum", 0), 1), watch.goes_on):
        with pytest.raises(WorkerLost, match="^worker 0 ends in step 0: worker 1 has not reached the point"):
            note()
    error = ValueError("Default process group has not been initialized")  # what an aborted group raises
    assert isinstance(watch.instead_of(error), WorkerLost)
    assert isinstance(watch.instead_of(RuntimeError("NCCL communicator was aborted")), WorkerLost)
    refused = ValueError("trainer.batch_size=7 must be a multiple of workers=2")  # on all workers alike
    assert watch.instead_of(refused) is refused


def test_an_abort_that_blocks_blocks_nobody_else() -> None:
    workers = Workers(2)
    blocked = threading.Event()
    workers.all[0].device.abort = blocked.wait  # type: ignore[method-assign, assignment]
    for worker in workers.all:
        worker.step(0, HANGS if worker is workers.all[1] else STEP_S)
    assert workers.run(6.0)
    with pytest.raises(WorkerLost):
        workers.all[0].watch.goes_on()
    blocked.set()


def test_an_error_of_the_device_is_published_though_the_host_is_blocked() -> None:
    workers = Workers(2)
    for worker in workers.all:
        worker.step(5, HANGS)
    workers.run(0.5)
    workers.all[1].device.error = torch.AcceleratorError(
        "CUDA error: uncorrectable ECC error encountered\nSearch…"
    )
    blame = workers.run(1.0)
    assert blame == "worker 1 failed in step 5: CUDA error: uncorrectable ECC error encountered"


def test_a_communicator_that_failed_is_evidence_as_a_broken_connection_is() -> None:
    workers = Workers(2)
    for worker in workers.all:
        worker.step(5, HANGS)
    workers.run(0.5)
    workers.all[0].device.failure = "NCCL's communicator has failed"
    del workers.all[1]  # dead: it publishes nothing
    blame = workers.run(2.8)
    assert blame.startswith("worker 1 is gone: no sign of life for 2"), blame


@pytest.mark.parametrize("stopped", [False, True])
def test_a_timeout_of_the_communicator_ends_waits_that_nobody_noted_unless_the_job_was_stopped(
    stopped: bool,
) -> None:
    workers = Workers(2)
    workers.clock.stopped = stopped
    for worker in workers.all:
        worker.watch.at("step 5")
        worker.stream.works(HANGS)
        worker.watch.at("step 6")
    workers.all[0].device.failure = "NCCL: a message timed out"
    blame = workers.run(1.0)
    assert blame.startswith("" if stopped else "worker 1 has not reached the point"), blame
    assert bool(blame) != stopped


OUT_OF_MEMORY = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which 1.55 GiB is "
    "free. Including non-PyTorch memory, this process has 77.59 GiB memory in use."
)
SHORT = (
    "CUDA out of memory: Tried to allocate 2.00 GiB, GPU 0 has a total capacity of 79.15 GiB of which 1.55 GiB "
    "is free"
)


def test_an_own_error_of_nccl_is_this_workers_and_another_is_somebodys() -> None:
    watch = Workers(2).all[1].watch
    own = watch.instead_of(
        DistBackendError(
            "NCCL error in: x.cpp:7\nncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nX"
        )
    )
    assert isinstance(own, DeviceFailed)
    assert str(own) == (
        "worker 1 failed in the start: NCCL: ncclUnhandledCudaError: X (NCCL_DEBUG=INFO tells more)"
    )
    failed = InstructionFailed(f"F0:1 (forward conv1): OutOfMemoryError: {OUT_OF_MEMORY}", "schedule")
    failed.__cause__ = OUT_OF_MEMORY
    assert str(watch.instead_of(failed)) == (
        f"worker 1 failed in the start: F0:1 (forward conv1): {SHORT}; a smaller trainer.batch_size needs less"
    )
    other = RuntimeError("boom")
    assert watch.instead_of(other) is other


def test_an_error_of_the_own_device_in_a_message_blames_this_worker() -> None:
    workers = Workers(2)
    for worker in workers.all:
        worker.step(5, HANGS)
    with ThreadPoolExecutor() as threads:
        ends = threads.submit(workers.all[1].watch.lost, OUT_OF_MEMORY)
        deadline = time.monotonic() + 10.0
        while not ends.done() and time.monotonic() < deadline:
            workers.run(0.1)
            time.sleep(0.02)
    failed = f"worker 1 failed in step 5: {SHORT}; a smaller trainer.batch_size needs less"
    assert str(ends.result()) == failed
    workers.run(0.6)
    with pytest.raises(WorkerLost, match=f"^worker 0 ends in .*: {re.escape(failed)}"):
        workers.all[0].watch.goes_on()


MARKS = st.lists(st.sampled_from(["at", "waits", "goes on", "run"]), max_size=60)


@given(MARKS)
def test_the_last_mark_that_the_stream_has_reached_says_what_it_does(marks: list[str]) -> None:
    device = ImitatedDevice()
    now = itertools.count().__next__
    tracked = StreamMarks(device, lambda: float(now()))
    states: list[tuple[str, object]] = [("the start", None)]
    done = 0
    for number, mark in enumerate(marks):
        where, awaited = states[-1]
        if mark == "run":
            device.now_stream.run(float(number))
            tracked.poll()
            done = len(states) - 1
        elif mark == "at":
            tracked.at(f"step {number}")
            states.append((f"step {number}", None))
        elif mark == "waits":
            tracked.waits(("sum", number), 1)
            states.append((where, (("sum", number), 1)))
        else:
            tracked.goes_on()
            if awaited is not None:
                states.append((where, None))
        reached = tracked.reached()
        if len(states) > 1:
            assert reached is not None
            assert (reached.mark.where, reached.mark.awaited) == states[done]
            assert reached.busy == (done < len(states) - 1)


@given(st.integers(1, 300), st.data())
def test_reached_marks_are_counted_by_few_questions(size: int, data: st.DataObject) -> None:
    device = ImitatedDevice()
    tracked = StreamMarks(device, lambda: 0.0)
    for step in range(size):
        tracked.at(f"step {step}")
    reached = data.draw(st.integers(0, size))
    events = list(device.now_stream._queue)
    for event in events[:reached]:
        event.done = True  # type: ignore[union-attr]
    asked = []
    ask = device.reached
    device.reached = lambda event: asked.append(event) is None and ask(event)  # type: ignore[method-assign]
    tracked.poll()
    found = tracked.reached()
    assert found is not None
    assert found.mark.where == (f"step {reached - 1}" if reached else "the start")
    assert len(asked) <= size.bit_length() + 1


def test_marks_that_no_device_reaches_are_limited() -> None:
    device = ImitatedDevice()
    tracked = StreamMarks(device, lambda: 0.0)
    for step in range(MOST_PENDING + 100):
        tracked.at(f"step {step}")
    assert device.events == MOST_PENDING


def test_another_stream_tells_waits_while_the_first_has_nothing_to_do() -> None:
    device, now = ImitatedDevice(), 7.0
    tracked = StreamMarks(device, lambda: now)
    activity = Activity(lambda: now, tracked)
    activity.at("step 1")
    first, device.stream = device.stream, Stream()
    activity.waits(("gather", 2), -1)
    device.stream.waits(lambda: False)
    activity.goes_on()
    assert first is not None
    device.stream.run(0.0)
    tracked.poll()
    assert str(activity.now) == "computing"  # the first stream has not reached its mark
    first.run(0.0)
    tracked.poll()
    assert str(activity.now) == "waiting for the others: weights of bucket 2"


def test_a_stream_that_is_being_captured_is_not_marked() -> None:
    device = ImitatedDevice()
    device.stream = None
    tracked = StreamMarks(device, lambda: 0.0)
    tracked.at("step 1")
    assert device.events == 0
    assert tracked.reached() is None


class Notes(NullWatch):
    """Keeps the waits that it is told of."""

    def __init__(self) -> None:
        self.noted: list[tuple[object, ...]] = []

    def waits(self, key: tuple[object, ...], peer: int) -> None:
        self.noted.append((key, peer))

    def goes_on(self) -> None:
        self.noted.append(("goes on",))


def test_nccls_waits_name_the_only_worker_at_the_other_end_and_its_first_messages_are_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def grouped(operations: list[object]) -> list[object]:
        notes.noted.append(("grouped call",))
        return [SimpleNamespace(wait=lambda: None)]

    monkeypatch.setattr(dist, "P2POp", lambda *operation: operation)
    monkeypatch.setattr(dist, "batch_isend_irecv", grouped)
    notes = Notes()
    device = torch.device("cpu")
    transport = Transport(World(0, 3, device, "nccl", notes), Clock(device))
    first, goes_on, call = (("the first message",), 1), ("goes on",), ("grouped call",)
    for begin in ([first, call, goes_on], [call]):
        notes.noted.clear()
        message = transport.start(("sum", 0), [(1, torch.zeros(2))], [Receive(1, (2,), torch.float32)])
        assert notes.noted == begin
        transport.wait(message)
        assert notes.noted[len(begin) :] == [(("sum", 0), 1), goes_on]
    notes.noted.clear()
    both = [Receive(peer, (2,), torch.float32) for peer in (1, 2)]
    transport.wait(transport.start(("sum", 1), [], both))
    assert notes.noted == [(("the first message",), -1), call, goes_on, (("sum", 1), -1), goes_on]
