"""Configuration of the tracker, which receives epochs in addition to the record on disk."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.config.checks import require_one_of


@dataclass(frozen=True)
class TrackerConfig:
    """The tracker, which receives epochs in addition to the record on disk."""

    name: str = "wandb"
    """wandb or none."""
    project: str = "parallel"
    mode: str = "auto"
    """auto (online with an API key, otherwise offline), online or offline."""

    def __post_init__(self) -> None:
        require_one_of("tracker", self.name, ("wandb", "none"))
        require_one_of("tracker.mode", self.mode, ("auto", "online", "offline"))
