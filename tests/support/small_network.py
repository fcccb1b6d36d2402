"""A registered network that trains in milliseconds: `model=small` in the commands that tests fork.

Shaped like AlexNet (convolutions, poolings, dropout, fully connected layers), so that every strategy applies to it;
18,874 parameters at 10 classes instead of 57 million. Importing this module registers it; `fork_server.py` does so
before `parallel.cli.choices` lists the models. The tests' own process and the real interpreter do not know it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from parallel.config import ModelConfig
from parallel.models import MODELS, Model, weights


@dataclass(frozen=True)
class SmallConfig(ModelConfig):
    """Options of the small network."""

    name: str = "small"
    image_size: int = 20
    features: int = 64
    """Features of the first fully connected layer."""

    least_size: ClassVar[int] = 20


def build(config: SmallConfig, num_classes: int) -> nn.Module:
    """Return the small network: images [n, 3, s, s] to logits [n, num_classes]."""
    network = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 8, 5, stride=2, padding=2),  # 20 → 10
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2, 2),  # 10 → 5
            conv2=nn.Conv2d(8, 16, 3, padding=1),
            relu2=nn.ReLU(),
            avgpool=nn.AdaptiveAvgPool2d(4),
            flatten=nn.Flatten(),
            drop3=nn.Dropout(0.5),
            fc3=nn.Linear(256, config.features),
            relu3=nn.ReLU(),
            drop4=nn.Dropout(0.5),
            fc4=nn.Linear(config.features, num_classes),
        )
    )
    weights.INITS[config.init](network, 1.0)
    return network


MODELS["small"] = Model(SmallConfig(), build)
