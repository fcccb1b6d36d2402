"""The networks: one definition each, plain PyTorch. A new one is a file here and an entry in
`MODELS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from parallel.config import ModelConfig
from parallel.models import alexnet, resnet, vgg


@dataclass(frozen=True)
class Model:
    """A choice of `model=`."""

    options: ModelConfig
    """Default options."""
    build: Callable[[Any, int], nn.Module]
    """(options, number of classes) → model with initial weights from the global random
    generator."""


MODELS: dict[str, Model] = {
    "alexnet": Model(alexnet.AlexNetConfig(), alexnet.build),
    "resnet18": Model(resnet.ResNet18Config(), resnet.build),
    "vgg16": Model(vgg.VGG16Config(), vgg.build),
}


def build_model(config: ModelConfig, num_classes: int, seed: int) -> nn.Module:
    """Return the configured model. Its initial weights depend only on `seed`.

    Raises `ValueError` if `model.num_classes` is set and differs from the data set's `num_classes`.
    """
    if config.num_classes not in (None, num_classes):
        raise ValueError(
            f"model.num_classes={config.num_classes} does not fit the data set, which has {num_classes} classes; "
            f"leave it out or set it to {num_classes}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[config.name].build(config, num_classes)
