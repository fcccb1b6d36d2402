"""Options of models by name, for tests that run over several models."""

from __future__ import annotations

import dataclasses

from parallel.config import ModelConfig
from parallel.models import MODELS


def model_options(name: str, variant: str | None = None, image_size: int = 64) -> ModelConfig:
    """Return the options of a model at an image size, with the named or the default variant."""
    changes = {} if variant is None else {"variant": variant}
    return dataclasses.replace(MODELS[name].options, image_size=image_size, **changes)
