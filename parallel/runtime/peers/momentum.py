"""The momentum of a tool's optimizer: reading, replacing and resetting it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn


class Momentum(Protocol):
    """Momentum by parameter."""

    def of(self, parameter: nn.Parameter) -> Tensor | None:
        """Return the momentum of a parameter, whole or sharded as the parameter is; None: zero.

        Call it on all workers.
        """

    def replace(self, parameter: nn.Parameter, momentum: Tensor) -> None:
        """Replace it by a tensor like the parameter. Call it on all workers."""

    def reset(self) -> None:
        """Set that of all parameters to zero."""


class SGDMomentum:
    """The momentum of torch's SGD, which updates the model's own parameters."""

    def __init__(self, sgd: torch.optim.SGD) -> None:
        self._state = sgd.state

    def of(self, parameter: nn.Parameter) -> Tensor | None:
        found: Tensor | None = self._state.get(parameter, {}).get("momentum_buffer")
        return found

    def replace(self, parameter: nn.Parameter, momentum: Tensor) -> None:
        self._state[parameter]["momentum_buffer"] = momentum

    def reset(self) -> None:
        self._state.clear()
