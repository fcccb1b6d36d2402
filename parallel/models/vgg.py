"""VGG-16: thirteen convolutions of 3×3 and three fully connected layers, 138,357,544 parameters at
1000 classes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from parallel.config import ModelConfig, check_dropout
from parallel.models.weights import INITS

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and number of convolutions of each stage (Simonyan and Zisserman 2015, table 1,
configuration D)."""


@dataclass(frozen=True)
class VGG16Config(ModelConfig):
    """Options of VGG-16."""

    name: str = "vgg16"
    dropout: float = 0.5

    least_size: ClassVar[int] = 32
    poolings: ClassVar[str] = "VGG-16's five poolings"

    def __post_init__(self) -> None:
        check_dropout(self.dropout)
        super().__post_init__()


class VGG16(nn.Sequential):
    """VGG-16 for `num_classes` classes: images [n, 3, s, s] to logits [n, num_classes].

    At 224 pixels the last pooling gives a 7×7 map, and `avgpool`, an adaptive average to 7×7,
    changes nothing. Smaller images leave a smaller map (64 pixels: 2×2), which `avgpool` enlarges
    to 7×7. So fc6 has 25088 inputs, and the network the same number of parameters, at every image
    size from 32 pixels. Dropout follows fc6 and fc7 (section 3.1).
    """

    def __init__(self, *, num_classes: int, image_size: int, dropout: float, init: str) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        width, side = 3, image_size
        for i, (channels, convolutions) in enumerate(STAGES, start=1):
            for j in range(1, convolutions + 1):
                layers[f"conv{i}_{j}"] = nn.Conv2d(width, channels, 3, padding=1)
                layers[f"relu{i}_{j}"] = nn.ReLU()
                width = channels
            layers[f"pool{i}"] = nn.MaxPool2d(2)
            side //= 2
        layers["avgpool"] = nn.AdaptiveAvgPool2d(7)
        layers["flatten"] = nn.Flatten()
        width *= 49
        for i in (6, 7):
            layers[f"fc{i}"] = nn.Linear(width, 4096)
            layers[f"relu{i}"] = nn.ReLU()
            layers[f"drop{i}"] = nn.Dropout(dropout)
            width = 4096
        layers["fc8"] = nn.Linear(width, num_classes)
        super().__init__(layers)
        INITS[init](self, max(1.0, 7 / side))


def build(config: VGG16Config, num_classes: int) -> VGG16:
    """Return the configured VGG-16."""
    return VGG16(
        num_classes=num_classes, image_size=config.image_size, dropout=config.dropout, init=config.init
    )
