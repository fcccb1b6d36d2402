"""The models: one definition each, plain PyTorch. A new one is a file here and a line in `MODELS`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from parallel.config import ModelConfig
from parallel.models import alexnet, resnet, vgg

MODELS: dict[str, Callable[[ModelConfig, int], nn.Module]] = {
    "alexnet": alexnet.build,
    "resnet18": resnet.build,
    "vgg16": vgg.build,
}
"""(configuration, number of classes) → model with initial weights from the global generator."""


def build_model(config: ModelConfig, num_classes: int, seed: int) -> nn.Module:
    """The configured model with the weights that `seed` gives, whatever the state of the global generator.

    Raises `ValueError` when `model.num_classes` is set and is not the data set's `num_classes`.
    """
    if config.num_classes not in (None, num_classes):
        raise ValueError(
            f"model.num_classes={config.num_classes} does not fit the data set, which has {num_classes} classes; "
            f"leave it out or set it to {num_classes}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[config.name](config, num_classes)
