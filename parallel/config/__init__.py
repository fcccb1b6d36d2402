"""The configuration of a run: one dataclass per Hydra group, validated at construction.

Nothing here imports Hydra: `parallel.cli.compose` turns `conf/` and the command line into a `Config`, and everything
below takes these dataclasses.
"""

from parallel.config.checks import one_line, require, require_one_of
from parallel.config.cluster import ClusterConfig
from parallel.config.data import DATA_SETS, DataConfig
from parallel.config.model import MODELS, ModelConfig, ModelRules
from parallel.config.run import Config
from parallel.config.strategy import PIPELINES, SEARCHES, STRATEGIES, UPDATES, StrategyConfig
from parallel.config.tracker import TrackerConfig
from parallel.config.trainer import LR_SCALINGS, PRECISIONS, SCHEDULES, TrainerConfig

__all__ = [
    "DATA_SETS", "LR_SCALINGS", "MODELS", "PIPELINES", "PRECISIONS", "SCHEDULES", "SEARCHES", "STRATEGIES", "UPDATES",
    "ClusterConfig", "Config", "DataConfig", "ModelConfig", "ModelRules", "StrategyConfig", "TrackerConfig",
    "TrainerConfig", "one_line", "require", "require_one_of",
]
