"""The watch asks CUDA's driver, torch's own watchdog is told to be quiet, and errors become sentences."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed import DistBackendError

from parallel.runtime.failure import gpu
from parallel.runtime.failure.device_errors import describe_device_error
from parallel.runtime.failure.gpu import Gpu
from parallel.runtime.failure.torch_watchdog import ERROR_HANDLING, QUIET, quiet_watchdog
from parallel.runtime.failure.wording import describe_error


class Driver:
    """Imitates libcuda."""

    def __init__(self, result: int) -> None:
        self._result = result

    def cuEventQuery(self, event: ctypes.c_void_p) -> int:  # noqa: N802
        assert event.value == 0x7F00_1234_5678, "a handle has 64 bits"
        return self._result


@pytest.mark.parametrize(
    "result, torch_says, reached",
    [
        (0, None, True),
        (600, None, False),
        (700, True, True),
        (700, "CUDA error: an illegal memory access", None),
    ],
)
def test_the_driver_is_asked_and_torch_only_about_errors(
    result: int, torch_says: Any, reached: bool | None
) -> None:
    def query() -> bool:
        assert torch_says is not None, "torch's query holds the interpreter's lock"
        if isinstance(torch_says, str):
            raise torch.AcceleratorError(torch_says)
        return bool(torch_says)

    device = Gpu(torch.device("cuda", 0), "nccl", Driver(result))  # type: ignore[arg-type]
    event: Any = SimpleNamespace(cuda_event=0x7F00_1234_5678, query=query)
    if reached is None:
        with pytest.raises(RuntimeError, match="illegal memory access"):
            device.reached(event)
    else:
        assert device.reached(event) is reached


def test_gloo_has_no_communicator_to_ask_or_to_abort(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(gpu, "communicator_error", lambda device: called.append("asked") or "failed")
    monkeypatch.setattr(gpu, "abort_process_groups", lambda: called.append("aborted"))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    shared = Gpu(torch.device("cuda", 0), "gloo", Driver(0))  # type: ignore[arg-type]
    assert shared.communicator_error() == ""
    shared.abort()
    assert called == []
    own = Gpu(torch.device("cuda", 0), "nccl", Driver(0))  # type: ignore[arg-type]
    assert own.communicator_error() == "failed"
    own.abort()
    assert called == ["asked", "aborted"]


def test_the_watchdog_is_told_what_the_user_has_not() -> None:
    environment = {"TORCH_NCCL_ENABLE_MONITORING": "1"}
    quiet_watchdog(environment)
    assert environment == {**QUIET, "TORCH_NCCL_ENABLE_MONITORING": "1"}
    by_torchrun = {"TORCHELASTIC_RUN_ID": "none", ERROR_HANDLING: "1"}
    quiet_watchdog(by_torchrun)
    assert by_torchrun[ERROR_HANDLING] == "0"
    by_the_user = {"TORCHELASTIC_RUN_ID": "none", ERROR_HANDLING: "3"}
    quiet_watchdog(by_the_user)
    assert by_the_user[ERROR_HANDLING] == "3"
    without_torchrun = {ERROR_HANDLING: "1"}
    quiet_watchdog(without_torchrun)
    assert without_torchrun[ERROR_HANDLING] == "1"


NCCL = "NCCL error in: /torch/csrc/NCCLUtils.cpp:77, NCCL version 2.27.5\n{}: {}\nLast error:\n{}"
ASSERT = (
    "CUDA error: device-side assert triggered\nSearch for `cudaErrorAssert' in https://docs.nvidia.com for more "
    "information.\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below "
    "might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
)
LATE = "(noticed later than it happened: CUDA_LAUNCH_BLOCKING=1 shows the op)"


@pytest.mark.parametrize(
    "error, sentence",
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which "
                "1.55 GiB is free. Process 4711 has 1.00 GiB memory in use. Including non-PyTorch memory, this process "
                "has 77.59 GiB memory in use."
            ),
            "CUDA out of memory: Tried to allocate 2.00 GiB, GPU 0 has a total capacity of 79.15 GiB of which 1.55 GiB "
            "is free; a smaller trainer.batch_size needs less",
        ),
        (torch.OutOfMemoryError(), "OutOfMemoryError; a smaller trainer.batch_size needs less"),
        (torch.AcceleratorError(ASSERT), f"CUDA error: device-side assert triggered {LATE}"),
        (
            RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be"),
            f"CUDA error: an illegal memory access was encountered {LATE}",
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        ),
        (
            DistBackendError(
                NCCL.format(
                    "ncclSystemError",
                    "System call (e.g. socket, malloc) or external library call failed or device error. ",
                    "Error while creating shared memory segment /dev/shm/nccl-Xy, error: No space left on device",
                )
            ),
            "NCCL: ncclSystemError: Error while creating shared memory segment /dev/shm/nccl-Xy, error: No space "
            "left on device (NCCL_DEBUG=INFO tells more)",
        ),
        (
            DistBackendError(
                NCCL.format(
                    "ncclUnhandledCudaError",
                    "Call to CUDA function failed.",
                    "Cuda failure 2 'out of memory'",
                )
            ),
            "NCCL: ncclUnhandledCudaError: Cuda failure 2 'out of memory' (NCCL_DEBUG=INFO tells more)",
        ),
    ],
)
def test_an_error_of_the_device_is_a_sentence(error: Exception, sentence: str) -> None:
    assert describe_device_error(error) == sentence
    assert describe_error(error) == sentence


@pytest.mark.parametrize(
    "error",
    [
        DistBackendError(
            NCCL.format(
                "ncclRemoteError",
                "A call failed possibly due to a network error or a remote process exiting prematurely.",
                "socketProgress: Connection closed by remote peer b<40001>",
            )
        ),
        DistBackendError(
            NCCL.format("ncclSystemError", "System call", "Call to recv failed : Connection reset by peer")
        ),
        DistBackendError("NCCL error\nncclSystemError: System call or external library call failed."),
        DistBackendError("NCCL communicator was aborted on rank 0."),
        RuntimeError("boom"),
        ValueError("CUDA error: of somebody who raises this"),
    ],
)
def test_what_another_worker_may_have_caused_is_no_error_of_the_device(error: Exception) -> None:
    assert describe_device_error(error) is None
