"""Configuration of the plan."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from parallel.config.checks import require, require_one_of

STRATEGIES = ("single", "data_parallel", "model_parallel", "one_weird_trick", "searched", "from_file", "ddp")
BASELINE = "single"
"""The strategy that speedups are measured against: the whole network on one worker."""
SEARCHES = ("exact", "mcmc", "exhaustive")
PIPELINES = ("fill_drain", "1f1b")
UPDATES = ("step", "pass")


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


def strategy_label(config: StrategyConfig, plan: str | None) -> str:
    """Return the strategy with what tells it from other runs of it: scheme, options other than the defaults, and for a
    plan that was read from a file its fingerprint `plan`."""
    words = [config.name, *([config.scheme] if config.scheme else [])]
    for option in dataclasses.fields(config):
        value = getattr(config, option.name)
        if option.name not in ("name", "scheme", "path") and value != option.default:
            words.append(f"{option.name}={value}")
    return " ".join([*words, *([f"plan {plan}"] if config.path is not None else [])])
