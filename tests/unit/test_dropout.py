"""Dropout masks: compared with a second implementation, independent of the split, random enough."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from parallel.graph.box import Box
from parallel.graph.ops import Shape, dropout
from parallel.graph.ops.dropout import dropout_mask, mask_columns, step_key
from parallel.verification import reference
from tests.support.gpu import needs_gpu

CPU = torch.device("cpu")


def kept(
    *,
    seed: int = 0,
    step: int = 0,
    op: str = "drop6",
    samples: Tensor | range = range(8),
    shape: Shape = (40,),
    p: float = 0.5,
    box: Box | None = None,
) -> Tensor:
    """Return which elements in a box of a sample of `shape` are kept."""
    samples = torch.tensor(list(samples), dtype=torch.int64)
    mask = dropout_mask(
        key=torch.tensor(step_key(seed, step)),
        op=zlib.crc32(op.encode()),
        samples=samples,
        columns=mask_columns(box or Box.whole((len(samples), *shape)), shape, CPU),
        p=p,
        dtype=torch.float64,
    )
    assert set(mask.unique().tolist()) <= {0.0, 1.0 / (1.0 - p)}
    return mask != 0


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    step=st.integers(0, 2**20),
    op=st.sampled_from(("drop6", "drop7", "x.drop")),
    first=st.integers(0, 5000),
    shape=st.sampled_from([(7,), (3, 4, 2), (1, 1, 1), (4096,)]),
    p=st.floats(0.0, 0.99),
)
def test_mask_is_the_reference_s(seed: int, step: int, op: str, first: int, shape: Shape, p: float) -> None:
    ours = kept(seed=seed, step=step, op=op, samples=range(first, first + 3), shape=shape, p=p)
    assert np.array_equal(ours.numpy(), reference.mask(seed, step, op, first, (3, *shape), p))


def test_mask_of_a_box_is_that_part_of_the_whole_mask() -> None:
    shape = (6, 5, 4)
    whole = kept(samples=range(16), shape=shape)
    box = Box(((0, 1), (1, 4), (2, 5), (0, 3)))
    rows = [3, 9, 10, 15]  # a worker may hold samples of several micro-batches
    assert torch.equal(kept(samples=torch.tensor(rows), shape=shape, box=box), whole[rows][:, 1:4, 2:5, 0:3])


def test_mask_does_not_depend_on_the_number_type() -> None:
    masks = [
        dropout_mask(
            key=torch.tensor(step_key(0, 0)),
            op=1,
            samples=torch.arange(4),
            columns=mask_columns(Box.whole((4, 50)), (50,), CPU),
            p=0.5,
            dtype=dtype,
        )
        for dtype in (torch.float32, torch.float64, torch.bfloat16)
    ]
    assert [mask.dtype for mask in masks] == [torch.float32, torch.float64, torch.bfloat16]
    assert torch.equal(masks[0].double(), masks[1])
    assert torch.equal(masks[2].double(), masks[1])


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_kept_is_right(p: float) -> None:
    mask = kept(samples=range(256), shape=(4096,), p=p).double()
    deviation = (p * (1 - p)) ** 0.5
    assert abs(mask.mean().item() - (1 - p)) < 5 * deviation / 1024  # standard error of 2²⁰ elements
    assert (mask.mean(dim=0) - (1 - p)).abs().max() < 6 * deviation / 16
    assert (mask.mean(dim=1) - (1 - p)).abs().max() < 6 * deviation / 64


def test_nothing_is_dropped_with_probability_zero() -> None:
    assert kept(samples=range(256), shape=(4096,), p=0.0).all()


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"step": 1}, {"op": "drop7"}, {"samples": range(64, 128)}], ids=str
)
def test_masks_of_other_seeds_steps_ops_and_samples_agree_by_chance_only(other: dict[str, object]) -> None:
    one = kept(**{"samples": range(64), "shape": (1024,)})  # type: ignore[arg-type]
    two = kept(**{"samples": range(64), "shape": (1024,), **other})  # type: ignore[arg-type]
    assert abs((one == two).double().mean().item() - 0.5) < 5 * 0.5 / 256


def test_rows_and_columns_are_not_correlated() -> None:
    signs = kept(samples=range(200), shape=(2000,)).double() * 2 - 1
    for matrix in (signs, signs.T[:200]):
        correlation = matrix @ matrix.T / matrix.shape[1]
        correlation.fill_diagonal_(0)
        assert correlation.abs().max() < 6 / matrix.shape[1] ** 0.5


def test_masks_of_all_sizes_need_one_compiled_function() -> None:
    """A GPU compiles the function once; dynamo would run it uncompiled, or fail, after eight times."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., Tensor]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(dropout._mask, dynamic=True, fullgraph=True, backend=backend)
    key = torch.tensor(step_key(1, 2))
    for op, rows, shape, p in ((7, 8, (40,), 0.5), (2**31, 3, (9,), 0.3), (2**32 - 1, 130, (4096,), 0.9)):
        columns = mask_columns(Box.whole((rows, *shape)), shape, CPU)
        arguments = key, torch.arange(rows), columns, op, round(p * 2**32) - 2**31, 1 / (1 - p), torch.float32
        assert torch.equal(compiled(*arguments), dropout._mask(*arguments))
    assert len(graphs) == 1


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7,), (3, 4, 2), (9216,)])
def test_on_a_gpu_a_mask_is_one_kernel_with_the_same_bits(shape: Shape, dtype: torch.dtype) -> None:
    gpu = torch.device("cuda", 0)
    box = Box.whole((130, *shape))
    masks = {}
    for device in (CPU, gpu):
        arguments = dict(
            key=torch.tensor(step_key(1, 2), device=device),
            op=2**32 - 1,
            samples=torch.arange(130, device=device),
            columns=mask_columns(box, shape, device),
            p=0.3,
            dtype=dtype,
        )
        masks[device] = dropout_mask(**arguments)  # type: ignore[arg-type]
    assert torch.equal(masks[gpu].cpu(), masks[CPU])
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        dropout_mask(**arguments)  # type: ignore[arg-type]
        torch.cuda.synchronize()
    kernels = [event for event in profiled.key_averages() if event.device_type == DeviceType.CUDA]
    assert sum(event.count for event in kernels) == 1
