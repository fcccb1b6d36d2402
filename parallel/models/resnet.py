"""ResNet-18: residual blocks with batch normalisation, 11,689,512 parameters at 1000 classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from parallel.config import ModelConfig
from parallel.models.weights import INITS

STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))
"""Channels and first stride of each stage of two blocks (He et al. 2016, table 1, 18-layer)."""


@dataclass(frozen=True)
class ResNet18Config(ModelConfig):
    """Options of ResNet-18."""

    name: str = "resnet18"

    least_size: ClassVar[int] = 32
    poolings: ClassVar[str] = "ResNet-18's five halvings"


class Block(nn.Module):
    """Residual block of two convolutions: [n, c, h, w] to [n, channels, h/stride, w/stride].

    Where the shape changes, `downsample` projects the input (option B of He et al. 2016, section
    4.1).
    """

    def __init__(self, width: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = (
            nn.Sequential()
            if stride == 1 and width == channels
            else nn.Sequential(nn.Conv2d(width, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
        )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(y + self.downsample(x))


class ResNet18(nn.Module):
    """ResNet-18 for `num_classes` classes: images [n, 3, s, s] to logits [n, num_classes].

    The map before the average over its positions is 7×7 at 224 pixels, 2×2 at 64, 1×1 at 32 and
    less. Parameters have the same names as in torchvision.
    """

    def __init__(self, *, num_classes: int, init: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        width = 64
        for i, (channels, stride) in enumerate(STAGES, start=1):
            self.add_module(
                f"layer{i}", nn.Sequential(Block(width, channels, stride), Block(channels, channels, 1))
            )
            width = channels
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(width, num_classes)
        INITS[init](self)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


def build(config: ResNet18Config, num_classes: int) -> ResNet18:
    """Return the configured ResNet-18."""
    return ResNet18(num_classes=num_classes, init=config.init)
