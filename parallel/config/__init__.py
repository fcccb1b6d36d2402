"""The configuration of a run: one dataclass per Hydra group, validated when it is made.

`conf/` holds the values and this file the types, defaults and rules. Nothing here imports Hydra: the entry
points turn a composed configuration into a `Config`, and everything below them takes these dataclasses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

DATA_SETS = ("digits", "tiny_imagenet", "dogs_vs_cats", "imagenet", "synthetic")
STRATEGIES = ("single", "data_parallel", "model_parallel", "one_weird_trick", "searched", "from_file", "ddp")
SEARCHES = ("exact", "mcmc", "exhaustive")
PRECISIONS = ("fp32", "bf16", "fp64")
SCHEDULES = ("constant", "step", "cosine")
LR_SCALINGS = ("none", "linear", "sqrt")
PIPELINES = ("fill_drain", "1f1b")
UPDATES = ("step", "pass")


def require(ok: bool, name: str, value: object, rule: str) -> None:
    """Raise `ValueError` with a sentence that names the field, the value and the rule it breaks."""
    if not ok:
        raise ValueError(f"{name}={value} {rule}")


def require_one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise `ValueError` unless `value` is one of `choices`."""
    require(value in choices, name, value, f"is not known; it must be one of {', '.join(choices)}")


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


@dataclass
class DataConfig:
    """Which data set, where it lies, and how its images are prepared."""

    name: str = "digits"
    root: str | None = None
    """Folder of the data set as it is distributed; digits and synthetic need none."""
    cache: str = ".cache/parallel"
    """Folder of the decoded uint8 caches."""
    cache_limit_gb: float = 64.0
    """A decoded cache larger than this is not made: the images stay JPEG and are decoded by batch."""
    stored_size: int | None = None
    """Side in pixels of the stored square image, at least model.image_size. None: model.image_size, or with crop
    8/7 of it (256 for 224)."""
    crop: bool = False
    """Train on a random crop of the stored image (validation: the centre)."""
    flip: bool = False
    """Train on a random horizontal flip."""
    train_images: int | None = None
    """Use only this many training images (synthetic: make this many). None: all."""
    val_images: int | None = None
    """Likewise for validation."""
    num_classes: int = 1000
    """Of synthetic data; the real sets bring their own."""
    decoders: int | None = None
    """Processes that decode while a cache is built. None: one per core."""

    def __post_init__(self) -> None:
        require_one_of("data.name", self.name, DATA_SETS)
        require(self.stored_size is None or self.stored_size >= 1, "data.stored_size", self.stored_size,
                "must be at least 1 pixel")
        require(self.cache_limit_gb >= 0, "data.cache_limit_gb", self.cache_limit_gb, "must not be negative")
        for name in ("train_images", "val_images", "decoders"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"data.{name}", value, "must be at least 1")
        require(self.num_classes >= 2, "data.num_classes", self.num_classes, "must be at least 2")


@dataclass
class StrategyConfig:
    """Which plan: `parallel/strategies/` has a page for each name."""

    name: str = "single"
    scheme: str | None = None
    """model_parallel: layers or tensor; one_weird_trick: a, b or c."""
    micro_batches: int = 1
    """model_parallel, scheme layers: 1 is the naive split, more a pipeline."""
    pipeline: str = "1f1b"
    """Order of the micro-batches: fill_drain or 1f1b."""
    update: str = "step"
    """one_weird_trick: when the fully connected weights are updated, once per step or every pass."""
    path: str | None = None
    """from_file: the plan file."""
    bucket_mb: float = 25.0
    """ddp: torch's bucket_cap_mb."""
    method: str = "exact"
    """searched: exact, mcmc or exhaustive."""
    seed: int = 0
    """searched: of mcmc."""
    time_limit_s: float = 60.0
    """searched: the best plan so far is taken after this time."""
    candidates: int = 3
    """searched, with confirm: how many of the best predicted plans are timed."""
    confirm: bool = False
    """searched: time the candidates, and take the fastest."""
    confirm_steps: int = 5
    """searched, with confirm: timed steps of each candidate."""
    plans: str = ".cache/parallel/plans"
    """searched: folder of the plans that were found; one that was found for the same is not searched for again."""

    def __post_init__(self) -> None:
        require_one_of("strategy", self.name, STRATEGIES)
        require_one_of("strategy.pipeline", self.pipeline, PIPELINES)
        require_one_of("strategy.update", self.update, UPDATES)
        require(self.micro_batches >= 1, "strategy.micro_batches", self.micro_batches, "must be at least 1")
        require(self.bucket_mb > 0, "strategy.bucket_mb", self.bucket_mb, "must be positive")
        require_one_of("strategy.method", self.method, SEARCHES)
        require(self.time_limit_s > 0, "strategy.time_limit_s", self.time_limit_s, "must be positive")
        for name in ("candidates", "confirm_steps"):
            require(getattr(self, name) >= 1, f"strategy.{name}", getattr(self, name), "must be at least 1")


@dataclass
class ClusterConfig:
    """What the workers run on."""

    device: str = "auto"
    """auto, cpu or cuda (one GPU per worker)."""
    backend: str = "auto"
    """auto, gloo or nccl."""
    threads: int = 1
    """CPU threads of each worker."""
    shared_memory: bool = True
    """CPU workers of one host hand tensors over in shared memory; false: by the network, as between hosts."""
    timeout_s: float = 60.0
    """How long a worker may wait for another, or give no sign of life, before the run ends."""
    hardware: dict[str, Any] | None = None
    """Numbers that simulation and search price plans with, written by hand (docs/clusters.md). None: calibrated."""
    file: str | None = None
    """A file of such numbers, which goes before `hardware` and the calibration that is kept."""
    cache: str = ".cache/parallel/clusters"
    """Folder in which parallel.calibrate keeps what it measured."""

    def __post_init__(self) -> None:
        require_one_of("cluster.device", self.device, ("auto", "cpu", "cuda"))
        require_one_of("cluster.backend", self.backend, ("auto", "gloo", "nccl"))
        require(self.threads >= 1, "cluster.threads", self.threads, "must be at least 1")
        require(self.timeout_s > 0, "cluster.timeout_s", self.timeout_s, "must be positive")


@dataclass
class TrainerConfig:
    """How the model is trained: equal for every strategy that is compared."""

    epochs: int = 3
    batch_size: int = 32
    """Global: over all workers."""
    precision: str = "fp32"
    seed: int = 0
    lr: float = 0.002
    momentum: float = 0.9
    weight_decay: float = 0.0005
    schedule: str = "constant"
    """constant; step: lr × gamma every step_epochs; cosine: to zero over the epochs."""
    step_epochs: int = 30
    gamma: float = 0.1
    lr_scaling: str = "none"
    """How lr follows the batch: none, or × (batch_size / base_batch_size), linear or its square root."""
    base_batch_size: int = 128
    channels_last: bool = True
    compile: bool = False
    check_finite: bool = False
    """Stop at the first infinite value or NaN, and name its step and op. Slow: it waits for every op."""
    trace: bool | int = False
    """Write what every worker does in one step to trace.json: a step's number, from 0; true: an early one."""
    warmup_steps: int = 2
    """Untimed steps before the first epoch; they change no weight."""

    def __post_init__(self) -> None:
        require_one_of("trainer.precision", self.precision, PRECISIONS)
        require_one_of("trainer.schedule", self.schedule, SCHEDULES)
        require_one_of("trainer.lr_scaling", self.lr_scaling, LR_SCALINGS)
        for name in ("epochs", "batch_size", "step_epochs", "base_batch_size"):
            require(getattr(self, name) >= 1, f"trainer.{name}", getattr(self, name), "must be at least 1")
        require(not (self.check_finite and self.compile), "trainer.check_finite", self.check_finite,
                "cannot look into what trainer.compile=true compiles: set one of them to false")
        require(self.trace >= 0, "trainer.trace", self.trace, "must be true, false or the number of a step, from 0")
        require(self.lr > 0, "trainer.lr", self.lr, "must be positive")
        require(0 <= self.momentum < 1, "trainer.momentum", self.momentum, "must be in [0, 1)")
        require(self.weight_decay >= 0, "trainer.weight_decay", self.weight_decay, "must not be negative")
        require(self.gamma > 0, "trainer.gamma", self.gamma, "must be positive")
        require(self.warmup_steps >= 0, "trainer.warmup_steps", self.warmup_steps, "must not be negative")
        require(0 <= self.seed < 2**32, "trainer.seed", self.seed, "must be from 0 to 2³² − 1")


@dataclass
class TrackerConfig:
    """Where the epochs are sent besides the record on disk."""

    name: str = "wandb"
    """wandb or none."""
    project: str = "parallel"
    mode: str = "auto"
    """auto: online with a key, offline without; or online, offline."""

    def __post_init__(self) -> None:
        require_one_of("tracker", self.name, ("wandb", "none"))
        require_one_of("tracker.mode", self.mode, ("auto", "online", "offline"))


@dataclass
class Config:
    """One run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    workers: int | None = None
    """How many workers the plan is for. None: the world that torchrun made. `single` always takes one."""
    sweep: str | None = None
    """The sweep that this run belongs to: the W&B group."""

    def __post_init__(self) -> None:
        require(self.workers is None or self.workers >= 1, "workers", self.workers, "must be at least 1")
        require(self.trainer.trace is False or self.strategy.name != "ddp", "trainer.trace", self.trainer.trace,
                "needs a plan, and strategy=ddp has none: torch's own profiler shows its steps")
        stored = self.data.stored_size
        require(stored is None or stored >= self.model.image_size, "data.stored_size", stored,
                f"must be at least model.image_size={self.model.image_size}")
