"""Configuration of the network."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.config.checks import require, require_one_of


@dataclass(frozen=True)
class ModelRules:
    """What may be configured of a model."""

    least_size: int
    """Pixels; of smaller images its poolings leave nothing."""
    poolings: str
    variants: tuple[str, ...] = ()
    """The first is the default."""
    inits: tuple[str, ...] = ("kaiming", "torch")
    dropout: float | None = None
    """The default; None: it has none."""


MODELS = {
    "alexnet": ModelRules(63, "AlexNet's three poolings", ("owt", "original", "ungrouped"),
                          ("kaiming", "paper", "torch"), 0.5),
    "resnet18": ModelRules(32, "ResNet-18's five halvings"),
    "vgg16": ModelRules(32, "VGG-16's five poolings", dropout=0.5),
}


@dataclass
class ModelConfig:
    """Which network, and at what size."""

    name: str = "alexnet"
    variant: str | None = None
    """Of AlexNet: owt, original or ungrouped. None: the model's default."""
    num_classes: int | None = None
    """None: as many as the data set has."""
    image_size: int = 64
    """Height and width of the input in pixels."""
    init: str = "kaiming"
    dropout: float | None = None
    """None: the model's default."""

    def __post_init__(self) -> None:
        require_one_of("model.name", self.name, tuple(MODELS))
        rules = MODELS[self.name]
        require(self.variant is None or rules.variants != (), "model.variant", self.variant,
                f"does not fit model={self.name}, which has no variants")
        require(self.dropout is None or rules.dropout is not None, "model.dropout", self.dropout,
                f"does not fit model={self.name}, which has no dropout")
        if rules.variants:
            self.variant = rules.variants[0] if self.variant is None else self.variant
            require_one_of("model.variant", self.variant, rules.variants)
        self.dropout = rules.dropout if self.dropout is None else self.dropout
        require_one_of("model.init", self.init, rules.inits)
        require(self.num_classes is None or self.num_classes >= 2, "model.num_classes", self.num_classes,
                "must be at least 2")
        require(self.image_size >= rules.least_size, "model.image_size", self.image_size,
                f"is too small: {rules.poolings} need at least {rules.least_size} pixels")
        require(self.dropout is None or 0.0 <= self.dropout < 1.0, "model.dropout", self.dropout, "must be in [0, 1)")

    @property
    def label(self) -> str:
        """Name and variant."""
        return " ".join(filter(None, (self.name, self.variant)))
