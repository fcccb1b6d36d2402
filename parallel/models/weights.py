"""Initial weights that several models share."""

from __future__ import annotations

import torch
from torch import nn


def init_torch(model: nn.Module, repeat: float = 1.0) -> None:
    """PyTorch's default (uniform in ±1/√fan_in): what the layers did when they were made."""


def init_kaiming(model: nn.Module, repeat: float = 1.0) -> None:
    """He et al. 2015, section 2.2, fan-in: weights N(0, 2/fan_in), biases 0. Batch norms stay at 1 and 0.

    The derivation takes the inputs as independent. Where an average pool repeats its map `repeat` times along each
    side, those of the first fully connected layer are copies, whose sum has repeat² times the variance, so its weights
    are `repeat` times smaller.
    """
    linear = 0
    for layer in model.modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
        linear += isinstance(layer, nn.Linear)
        if isinstance(layer, nn.Linear) and linear == 1:
            with torch.no_grad():
                layer.weight.div_(repeat)


INITS = {"torch": init_torch, "kaiming": init_kaiming}
