"""AlexNet in its three published variants, in plain PyTorch without any parallelism."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from parallel.config import ModelConfig, check_dropout, require_one_of
from parallel.models import weights


@dataclass(frozen=True)
class Variant:
    """The differences between the published variants of AlexNet."""

    channels: tuple[int, int, int, int, int]
    """Output channels of conv1 to conv5."""
    groups: tuple[int, int, int, int, int]
    """Groups of conv1 to conv5: 2 where the 2012 network kept its two GPUs' feature maps apart."""
    normalised: bool
    """Local response normalisation after the first two convolutions."""
    dropout_first: bool
    """Dropout before fc6 and fc7 (2014) or after them (2012)."""


VARIANTS = {
    # Krizhevsky 2014, "One weird trick", footnote 1: a single tower. 61,100,840 parameters at 1000
    # classes.
    "owt": Variant((64, 192, 384, 256, 256), (1, 1, 1, 1, 1), normalised=False, dropout_first=True),
    # Krizhevsky, Sutskever, Hinton 2012, section 3: two towers. 60,965,224 parameters.
    "original": Variant((96, 256, 384, 384, 256), (1, 2, 1, 2, 2), normalised=True, dropout_first=False),
    # The 2012 network without groups, as in single-GPU code. 62,378,344 parameters.
    "ungrouped": Variant((96, 256, 384, 384, 256), (1, 1, 1, 1, 1), normalised=True, dropout_first=False),
}


@dataclass(frozen=True)
class AlexNetConfig(ModelConfig):
    """Options of AlexNet."""

    name: str = "alexnet"
    variant: str = "owt"
    dropout: float = 0.5

    inits: ClassVar[tuple[str, ...]] = ("kaiming", "paper", "torch")
    least_size: ClassVar[int] = 63
    poolings: ClassVar[str] = "AlexNet's three poolings"

    def __post_init__(self) -> None:
        require_one_of("model.variant", self.variant, tuple(VARIANTS))
        check_dropout(self.dropout)
        super().__post_init__()


class AlexNet(nn.Sequential):
    """AlexNet for `num_classes` classes: images [n, 3, s, s] to logits [n, num_classes].

    At 224 (or 227) pixels the last pooling gives a 6×6 map, and `avgpool`, an adaptive average to
    6×6, changes nothing. Smaller images leave a smaller map (64 pixels: 1×1), which `avgpool`
    repeats to 6×6; larger ones are averaged down. So fc6 has 9216 inputs, and the network the same
    number of parameters, at every image size.
    """

    def __init__(self, *, variant: str, num_classes: int, image_size: int, dropout: float, init: str) -> None:
        v = VARIANTS[variant]
        kernels, strides, paddings = (11, 5, 3, 3, 3), (4, 1, 1, 1, 1), (2, 2, 1, 1, 1)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        width, side = 3, image_size
        for i in range(5):
            layers[f"conv{i + 1}"] = nn.Conv2d(
                width, v.channels[i], kernels[i], strides[i], paddings[i], groups=v.groups[i]
            )
            side = (side + 2 * paddings[i] - kernels[i]) // strides[i] + 1
            layers[f"relu{i + 1}"] = nn.ReLU()
            if v.normalised and i < 2:
                # PyTorch divides alpha by the size of the window; the 2012 paper (section 3.3) does
                # not.
                layers[f"norm{i + 1}"] = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
            if i in (0, 1, 4):
                layers[f"pool{i + 1}"] = nn.MaxPool2d(3, 2)
                side = (side - 3) // 2 + 1
            width = v.channels[i]
        layers["avgpool"] = nn.AdaptiveAvgPool2d(6)
        layers["flatten"] = nn.Flatten()
        width *= 36
        for i in (6, 7):
            if v.dropout_first:
                layers[f"drop{i}"] = nn.Dropout(dropout)
            layers[f"fc{i}"] = nn.Linear(width, 4096)
            layers[f"relu{i}"] = nn.ReLU()
            if not v.dropout_first:
                layers[f"drop{i}"] = nn.Dropout(dropout)
            width = 4096
        layers["fc8"] = nn.Linear(width, num_classes)
        super().__init__(layers)
        INITS[init](self, max(1.0, 6 / side))


def init_paper(model: nn.Module, repeat: float) -> None:
    """Initialise as Krizhevsky et al. 2012, section 5: weights N(0, 0.01²), biases 0.

    Biases of conv2, conv4, conv5, fc6 and fc7 are 1.
    """
    ones = {"conv2", "conv4", "conv5", "fc6", "fc7"}
    for name, layer in model.named_children():
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, 1.0 if name in ones else 0.0)


INITS = {**weights.INITS, "paper": init_paper}


def build(config: AlexNetConfig, num_classes: int) -> AlexNet:
    """Return the configured AlexNet."""
    return AlexNet(
        variant=config.variant,
        num_classes=num_classes,
        image_size=config.image_size,
        dropout=config.dropout,
        init=config.init,
    )
