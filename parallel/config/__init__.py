"""The configuration of a run: one frozen dataclass per Hydra group, validated at construction.

This package does not import Hydra: `parallel.cli.compose` builds a `Config` from `conf/` and the
command line. Models, data sets and strategies subclass the dataclass of their group and add their
own options.
"""

from parallel.config.checkpoint import CheckpointConfig
from parallel.config.checks import (
    invalid_input,
    one_line,
    printable,
    require,
    require_number,
    require_one_of,
    require_plain,
    require_positive,
)
from parallel.config.cluster import ClusterConfig
from parallel.config.data import DataConfig, ImageFilesConfig
from parallel.config.ddp import Ddp
from parallel.config.model import ModelConfig, check_dropout
from parallel.config.peer import PeerConfig
from parallel.config.run import AUTO, NEVER, Config
from parallel.config.searched import SEARCHES, Searched
from parallel.config.strategy import PIPELINES, UPDATES, StrategyConfig
from parallel.config.tracker import TrackerConfig
from parallel.config.trainer import LR_SCALINGS, PRECISIONS, SCHEDULES, TrainerConfig

__all__ = [
    "AUTO",
    "LR_SCALINGS",
    "NEVER",
    "PIPELINES",
    "PRECISIONS",
    "SCHEDULES",
    "SEARCHES",
    "UPDATES",
    "CheckpointConfig",
    "ClusterConfig",
    "Config",
    "DataConfig",
    "Ddp",
    "ImageFilesConfig",
    "ModelConfig",
    "PeerConfig",
    "Searched",
    "StrategyConfig",
    "TrackerConfig",
    "TrainerConfig",
    "check_dropout",
    "invalid_input",
    "one_line",
    "printable",
    "require",
    "require_number",
    "require_one_of",
    "require_plain",
    "require_positive",
]
