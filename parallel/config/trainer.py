"""Configuration of training, the same for all strategies that are compared."""

from __future__ import annotations

from dataclasses import dataclass, field

from parallel.config.checkpoint import CheckpointConfig
from parallel.config.checks import require, require_one_of

PRECISIONS = ("fp32", "bf16", "fp64")
SCHEDULES = ("constant", "step", "cosine")
LR_SCALINGS = ("none", "linear", "sqrt")


@dataclass(frozen=True)
class TrainerConfig:
    """Options of training, the same for all strategies that are compared."""

    epochs: int = 3
    batch_size: int = 32
    """Global batch size, over all workers."""
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
    """Scaling of lr by batch_size / base_batch_size: none, linear, or sqrt (its square root)."""
    base_batch_size: int = 128
    channels_last: bool = True
    compile: bool = False
    check_finite: bool = False
    """Whether to stop at the first infinity or NaN and name its step and op. Slow: every op is
    synchronised."""
    trace: bool | int = False
    """Step to trace, from 0, or true for an early one: trace.json then shows what every worker does
    in it."""
    warmup_steps: int = 2
    """Untimed steps before the first epoch; they change no weights."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        require_one_of("trainer.precision", self.precision, PRECISIONS)
        require_one_of("trainer.schedule", self.schedule, SCHEDULES)
        require_one_of("trainer.lr_scaling", self.lr_scaling, LR_SCALINGS)
        for name in ("epochs", "batch_size", "step_epochs", "base_batch_size"):
            require(getattr(self, name) >= 1, f"trainer.{name}", getattr(self, name), "must be at least 1")
        require(
            not (self.check_finite and self.compile),
            "trainer.check_finite",
            self.check_finite,
            "cannot look into what trainer.compile=true compiles: set one of them to false",
        )
        require(
            self.trace >= 0,
            "trainer.trace",
            self.trace,
            "must be true, false or the number of a step, from 0",
        )
        require(self.lr > 0, "trainer.lr", self.lr, "must be positive")
        require(0 <= self.momentum < 1, "trainer.momentum", self.momentum, "must be in [0, 1)")
        require(self.weight_decay >= 0, "trainer.weight_decay", self.weight_decay, "must not be negative")
        require(self.gamma > 0, "trainer.gamma", self.gamma, "must be positive")
        require(self.warmup_steps >= 0, "trainer.warmup_steps", self.warmup_steps, "must not be negative")
        require(0 <= self.seed < 2**32, "trainer.seed", self.seed, "must be from 0 to 2³² − 1")
