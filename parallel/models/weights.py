"""Initial weights that several models share."""

from __future__ import annotations

import torch
from torch import nn


def init_torch(model: nn.Module, repeat: float = 1.0) -> None:
    """Keep PyTorch's default weights, uniform in ±1/√fan_in, from the construction of the
    layers."""


def init_kaiming(model: nn.Module, repeat: float = 1.0) -> None:
    """Initialise as He et al. 2015, section 2.2 (fan-in): weights N(0, 2/fan_in), biases 0.

    Batch norms keep weight 1 and bias 0. The derivation assumes independent inputs. If an average
    pooling repeats its map `repeat` times along each side, the inputs of the first fully connected
    layer are copies, and their sum has repeat² times the variance. So its weights are divided by
    `repeat`.
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
