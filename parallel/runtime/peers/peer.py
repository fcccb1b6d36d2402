"""Interface of peers: options, and a function that sets a tool up around a model.

The function does what the tool's documentation tells its users to do, in a process group that is
open already, and returns what a training step calls. `PeerEngine` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from parallel.config.peer import PeerConfig
from parallel.runtime.communication.world import World
from parallel.runtime.peers.momentum import Momentum
from parallel.runtime.peers.waits import Waits


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a tool is set up with, on one worker of at least two."""

    model: nn.Module
    """On the worker's device, with the initial weights."""
    sgd: Callable[..., torch.optim.SGD]
    """(parameters, fused) → the optimizer; the engine sets its learning rate before every step."""
    world: World
    waits: Waits
    """To be told where the tool waits for other workers, besides before the model's forward and
    after the last gradient."""
    precision: str
    samples: int
    """Samples of a training batch on this worker."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A model and its optimizer, as a tool has set them up."""

    train: Callable[[Tensor], Tensor]
    """Images → logits, in training."""
    backward: Callable[[Tensor], None]
    """Replace the gradients by those of a loss, summed over the workers' equal parts and divided
    by their number."""
    step: Callable[[], object]
    """Update the weights."""
    sgd: torch.optim.SGD
    """The optimizer that computes the updates."""
    momentum: Momentum
    loaded: Callable[[Sequence[nn.Parameter]], None] = lambda parameters: None
    """Called after the weights of all parameters have been replaced."""


@dataclass(frozen=True)
class Peer:
    """A tool to compare with."""

    options: PeerConfig
    """Default options."""
    prepare: Callable[[Setting, Any], Prepared]
    """(setting, options) → the model and the optimizer as the tool sets them up."""
    channels_last: bool = True
    """Whether it takes weights in channels_last order."""
