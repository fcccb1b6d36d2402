"""What a training step launches, beside a plain PyTorch loop."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from parallel.graph import Graph, trace, whole_part
from parallel.graph.ops import Context
from parallel.models import build_model
from tests.support.options import model_options
from tests.support.small_models import CLASSES, build

MOST = 1.2
MOST_OF_A_SPLIT_NORM = 20


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return scripts/count_operators.py."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    return importlib.import_module("count_operators")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", ["tower", "towers", "resnet18"])  # towers: AlexNet's layers
def test_a_step_launches_little_more_than_a_plain_loop_s(
    counting: ModuleType, model: str, precision: str
) -> None:
    if model == "resnet18":
        network, shape = build_model(model_options(model, image_size=32), CLASSES, seed=0), (3, 32, 32)
    else:
        network, shape = build(model)
    plain, single = counting.counts(network, shape, torch.randint(CLASSES, (4,)), precision)
    assert single.kernels["_fused_sgd_"] == plain.kernels["_fused_sgd_"] == 1
    assert single.kernels["convolution"] == plain.kernels["convolution"] > 0
    assert single.kernels["native_batch_norm"] == plain.kernels["native_batch_norm"]
    assert single.kernels.total() <= MOST * plain.kernels.total()
    assert single.operators.total() <= MOST * plain.operators.total()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_norm_with_shared_statistics_launches_few_operators(
    counting: ModuleType, dtype: torch.dtype
) -> None:
    """Without its two exchanges, which lie between the sums and the normalisation."""
    layer = nn.BatchNorm2d(6)
    graph: Graph = trace(nn.Sequential(nn.Conv2d(3, 6, 1), layer, nn.Flatten()), (3, 4, 4))
    sums, norm = graph["1.sums"], graph["1"]
    x, part = torch.randn(8, 6, 4, 4).to(dtype).requires_grad_(), whole_part(norm, 8)
    parameters, buffers = dict(layer.named_parameters()), {"1": dict(layer.named_buffers())}
    context = Context(True, torch.tensor(0), torch.arange(8), buffers)
    cotangent = torch.ones_like(x)

    def step() -> None:
        own = sums.forward(part, [x], {}, context)
        received = own.detach().requires_grad_()
        norm.forward(part, [x, received], parameters, context).backward(cotangent)
        own.backward(received.grad)
        for tensor in (x, *parameters.values()):
            tensor.grad = None

    count: Counter[str] = counting.counted(step).operators
    assert count["native_batch_norm"] == count["native_batch_norm_backward"] == 1
    assert count.total() <= MOST_OF_A_SPLIT_NORM
