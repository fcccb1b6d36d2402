"""A training step of `single` launches at most 1.2 times what a plain PyTorch loop launches."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from tests.support.small_models import CLASSES, build

MOST = 1.2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", ["tower", "towers"])  # of AlexNet's layers; batch norm takes more
def test_a_step_launches_little_more_than_a_plain_loop_s(
    monkeypatch: pytest.MonkeyPatch, model: str, precision: str
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    counting = importlib.import_module("count_operators")
    network, shape = build(model)
    plain, single = counting.counts(network, shape, torch.randint(CLASSES, (4,)), precision)
    assert single.kernels["_fused_sgd_"] == plain.kernels["_fused_sgd_"] == 1
    assert single.kernels["convolution"] == plain.kernels["convolution"] > 0
    assert single.kernels.total() <= MOST * plain.kernels.total()
    assert single.operators.total() <= MOST * plain.operators.total()
