"""Private interfaces of torch that the runtime uses exist and have the same meaning."""

from __future__ import annotations

import inspect
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import ErrorType
from torch.distributed import distributed_c10d
from torch.profiler import ProfilerActivity, profile

from parallel.calibration.stopwatch import Hold
from parallel.runtime import torch_private
from parallel.runtime.failure.gpu import Gpu
from parallel.runtime.instrumentation.timer import DeviceTimer
from parallel.runtime.torch_private import (
    abort_process_groups,
    communicator_error,
    profiler_is_active,
    spin_device,
)
from tests.support.gpu import needs_gpu


def test_an_active_profiler_is_seen() -> None:
    assert not profiler_is_active()
    with profile(activities=[ProfilerActivity.CPU]):
        assert profiler_is_active()
    assert not profiler_is_active()


def test_without_a_process_group_nothing_is_aborted_and_nothing_has_failed() -> None:
    abort_process_groups()
    assert communicator_error(torch.device("cuda", 0)) == ""


class Backend:
    error = ErrorType.SUCCESS

    def get_error(self) -> ErrorType:
        return self.error


@pytest.mark.parametrize("error", [ErrorType.COMM_ERROR, ErrorType.REMOTE_ERROR, ErrorType.TIMEOUT])
def test_a_failure_of_the_communicator_is_seen(error: ErrorType, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend()
    group = SimpleNamespace(_get_backend=lambda device: backend)
    monkeypatch.setattr(torch_private, "dist", SimpleNamespace(group=SimpleNamespace(WORLD=group)))
    assert communicator_error(torch.device("cuda", 0)) == ""
    backend.error = error
    assert ("timed out" in communicator_error(torch.device("cuda", 0))) == (error == ErrorType.TIMEOUT)
    assert communicator_error(torch.device("cuda", 0))


def test_names_that_abort_and_ask_exist() -> None:
    assert [*inspect.signature(distributed_c10d._abort_process_group).parameters] == ["group"]
    assert callable(dist.ProcessGroup._get_backend)


@needs_gpu
def test_nccl_is_asked_and_aborted() -> None:
    device = torch.device("cuda", 0)
    store = dist.HashStore()
    dist.init_process_group("nccl", store=store, rank=0, world_size=1, device_id=device)
    assert dist.group.WORLD is not None
    assert callable(dist.group.WORLD._get_backend(device).get_error)  # type: ignore[attr-defined]
    gpu = Gpu(device, "nccl")
    gpu.enter_thread()
    assert gpu.communicator_error() == ""
    stream = torch.cuda.current_stream(device)
    event = gpu.record(stream, None)
    torch.cuda.synchronize(device)
    assert gpu.reached(event)
    torch.cuda._sleep(2_000_000_000)  # cycles
    later = gpu.record(stream, event)
    assert not gpu.reached(later)
    graph, captured = torch.cuda.CUDAGraph(), torch.zeros(2, device=device)
    with ThreadPoolExecutor(1, initializer=gpu.enter_thread) as other:
        other.submit(gpu.reached, later).result()
        with torch.cuda.graph(graph):
            captured += 1
            assert gpu.current() is None
            other.submit(gpu.reached, later).result()  # does not disturb the capture
    graph.replay()
    gpu.abort()
    assert not dist.is_initialized()
    torch.cuda.synchronize(device)
    assert gpu.reached(later)


def test_a_gpu_can_spin() -> None:
    assert list(inspect.signature(torch.cuda._sleep).parameters) == ["cycles"]


@needs_gpu
def test_a_gpu_spins_as_long_as_it_is_told() -> None:
    timer = DeviceTimer(lambda: torch.cuda.Event(enable_timing=True))
    hold = Hold(timer, spin_device)
    begin = timer.mark()
    hold(0.01)
    end = timer.mark()
    assert not timer.passed(end)
    assert 0.005 < timer.seconds(end) - timer.seconds(begin) < 0.02
