"""Functions that are one kernel on a GPU: what torch.compile makes of them, here without a compiler."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from parallel.graph.ops import batch_norm, one_kernel
from tests.support.gpu import needs_gpu


def test_why_a_function_cannot_be_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert one_kernel.no_triton((7, 0)) is None and one_kernel.no_triton((12, 1)) is None
    assert one_kernel.no_triton((6, 0)) == "this GPU has compute capability 6.0, and Triton needs 7.0"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert str(one_kernel.no_triton((9, 0))).startswith("triton is not installed")


@pytest.mark.parametrize(
    "error", [RuntimeError("Failed to find C\n compiler"), FileNotFoundError("Python.h"), None]
)
def test_what_triton_builds_at_first_use(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    class Driver:
        @property
        def active(self) -> Driver:
            if error is not None:
                raise error
            return self

        def get_current_target(self) -> str:
            return "cuda"

    monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))
    monkeypatch.setitem(sys.modules, "triton.runtime", SimpleNamespace(driver=Driver()))
    expected = f"Triton cannot build its launcher, which takes a C compiler and Python.h: {error}".replace(
        "\n", ""
    )
    assert one_kernel.no_launcher() == (None if error is None else expected)


def of_one_layer(
    channels: int, count: int, momentum: float, eps: float
) -> list[tuple[Callable[..., object], tuple[object, ...]]]:
    """Return the functions of a batch norm, each with its arguments."""
    mean, var, *others = (torch.rand(channels) for _ in range(7))
    weight, of_weight, of_bias, running_mean, running_var = others
    sums = batch_norm._sums(mean, var, count)
    return [
        (batch_norm._sums, (mean, var, count)),
        (batch_norm._statistics, (sums, running_mean, running_var, momentum)),
        (batch_norm._gradient_of_sums, (sums, mean, var, weight, of_weight, of_bias, eps)),
    ]


def test_batch_norms_of_all_sizes_need_one_compiled_function_of_each_kind() -> None:
    """A GPU compiles a function once; dynamo would run it uncompiled, or fail, after eight times."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., Tensor]:
        graphs.append(graph)
        return graph.forward

    compiled: dict[Callable[..., object], Callable[..., object]] = {}
    for setting in ((5, 12, 0.1, 1e-5), (64, 401408, 0.3, 0.01), (512, 98, 0.25, 1e-3)):
        for function, given in of_one_layer(*setting):
            if function not in compiled:
                compiled[function] = torch.compile(function, dynamic=True, fullgraph=True, backend=backend)
            again = [one.clone() if isinstance(one, Tensor) else one for one in given]
            torch.testing.assert_close(compiled[function](*again), function(*given))
            torch.testing.assert_close(again, list(given))  # running statistics
    assert len(graphs) == 3


@needs_gpu
def test_on_a_gpu_each_function_of_a_batch_norm_is_one_kernel() -> None:
    for function, given in of_one_layer(64, 401408, 0.1, 1e-5):
        on_gpu = [one.cuda() if isinstance(one, Tensor) else one for one in given]
        torch.testing.assert_close(function(*on_gpu), function(*given), check_device=False)
        torch.testing.assert_close(on_gpu, list(given), check_device=False)  # running statistics
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            function(*on_gpu)
            torch.cuda.synchronize()
        kernels = [event for event in profiled.key_averages() if event.device_type == DeviceType.CUDA]
        assert sum(event.count for event in kernels) == 1, function
