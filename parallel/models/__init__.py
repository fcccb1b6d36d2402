"""The models: one definition each, plain PyTorch. A new one is a file here and a line in `MODELS`."""

from __future__ import annotations

from torch import nn

from parallel.config import ModelConfig
from parallel.models import alexnet

MODELS = {"alexnet": alexnet.build}


def build_model(config: ModelConfig, num_classes: int, seed: int) -> nn.Module:
    """The configured model with the weights that `seed` gives.

    Raises `ValueError` when `model.num_classes` is set and is not the data set's `num_classes`.
    """
    if config.num_classes not in (None, num_classes):
        raise ValueError(
            f"model.num_classes={config.num_classes} does not fit the data set, which has {num_classes} classes; "
            f"leave it out or set it to {num_classes}"
        )
    build = MODELS[config.name]
    return build(
        variant=config.variant, num_classes=num_classes, image_size=config.image_size, dropout=config.dropout,
        init=config.init, seed=seed,
    )
