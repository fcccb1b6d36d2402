"""What a training step launches, beside a plain PyTorch loop."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from parallel.models import build_model
from tests.support.options import model_options
from tests.support.small_models import CLASSES, build

MOST = 1.2


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
