"""Options that all engines take."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.config import TrainerConfig


@dataclass(frozen=True)
class EngineOptions:
    """Options of computing and updating, equal on every worker."""

    seed: int
    """Chooses the dropout masks, together with the step."""
    precision: str = "fp32"
    """One of `parallel.program.precision.DTYPES`."""
    channels_last: bool = True
    momentum: float = 0.0
    weight_decay: float = 0.0
    compile: bool = False
    """Compile with `torch.compile`."""
    graphs: bool = False
    """Capture a step and replay it (`step_graph`)."""

    @staticmethod
    def from_config(trainer: TrainerConfig) -> EngineOptions:
        """Return the options in the configuration's group `trainer`."""
        return EngineOptions(
            seed=trainer.seed,
            precision=trainer.precision,
            channels_last=trainer.channels_last,
            momentum=trainer.momentum,
            weight_decay=trainer.weight_decay,
            compile=trainer.compile,
            graphs=trainer.graphs,
        )
