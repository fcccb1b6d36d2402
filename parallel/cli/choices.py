"""The choices of `model=`, `data=` and `strategy=`, each with its default options."""

from __future__ import annotations

from collections.abc import Mapping

from parallel.config import DataConfig, ModelConfig, Searched, StrategyConfig
from parallel.data import DATA_SETS
from parallel.models import MODELS
from parallel.runtime.peers import PEERS
from parallel.strategies import STRATEGIES

CHOICES: Mapping[str, Mapping[str, ModelConfig | DataConfig | StrategyConfig]] = {
    "model": {name: model.options for name, model in MODELS.items()},
    "data": {name: source.options for name, source in DATA_SETS.items()},
    "strategy": {
        **{name: strategy.options for name, strategy in STRATEGIES.items()},
        "searched": Searched(),
        **{name: peer.options for name, peer in PEERS.items()},
    },
}
