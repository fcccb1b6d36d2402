"""Configuration of training, the same for all strategies that are compared."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from parallel.config.checkpoint import CheckpointConfig
from parallel.config.checks import (
    MOST_SAMPLES,
    MOST_STEPS,
    SEEDS,
    require,
    require_number,
    require_one_of,
    require_positive,
)

PRECISIONS = ("fp32", "tf32", "bf16", "fp64")
SCHEDULES = ("constant", "step", "cosine")
LR_SCALINGS = ("none", "linear", "sqrt")
MOST_LR = 10**6
"""Bound of lr, weight_decay and gamma; sensible values are below 10."""


@dataclass(frozen=True)
class TrainerConfig:
    """Options of training, the same for all strategies that are compared."""

    epochs: int = 3
    batch_size: int = 32
    """Global batch size, over all workers."""
    batch_per_worker: int | None = None
    """For weak scaling: `Config` sets batch_size to this times the number of workers. None: batch_size
    is as given."""
    precision: str = "fp32"
    """fp32: IEEE, without TF32. tf32: fp32 tensors, products in TF32; GPUs only. bf16: autocast. fp64."""
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
    graphs: bool = False
    """Whether to capture a training step as a CUDA graph and replay it: one worker on a GPU."""
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
        for name, most in (
            ("epochs", MOST_STEPS),
            ("step_epochs", MOST_STEPS),
            ("batch_size", MOST_SAMPLES),
            ("batch_per_worker", MOST_SAMPLES),
            ("base_batch_size", MOST_SAMPLES),
        ):
            require_number(f"trainer.{name}", getattr(self, name), 1, most)
        require(
            not (self.check_finite and self.compile),
            "trainer.check_finite",
            self.check_finite,
            "cannot look into what trainer.compile=true compiles: set one of them to false",
        )
        require(
            0 <= self.trace < 10**9,
            "trainer.trace",
            self.trace,
            "must be true, false or the number of a step, from 0 and below 1,000,000,000",
        )
        for name, reason in (
            ("compile", "may compile anew while a step is captured"),
            ("check_finite", "looks at every op, and a replayed step runs no ops"),
            ("trace", "times every instruction, and a replayed step runs none"),
        ):
            require(
                not self.graphs or getattr(self, name) is False,
                "trainer.graphs",
                self.graphs,
                f"and trainer.{name}={getattr(self, name)} exclude each other: trainer.{name} {reason}",
            )
        require_positive("trainer.lr", self.lr, MOST_LR)
        require(0 <= self.momentum < 1, "trainer.momentum", self.momentum, "must be in [0, 1)")
        require_number("trainer.weight_decay", self.weight_decay, 0, MOST_LR)
        require_positive("trainer.gamma", self.gamma, MOST_LR)
        steps = (self.epochs - 1) // self.step_epochs if self.schedule == "step" else 0
        require(
            steps * math.log10(self.gamma) <= math.log10(MOST_LR),
            "trainer.gamma",
            self.gamma,
            f"multiplies trainer.lr by more than {MOST_LR:,} in {steps} steps",
        )
        require_number("trainer.warmup_steps", self.warmup_steps, 0, MOST_STEPS)
        require_number("trainer.seed", self.seed, 0, SEEDS - 1)
