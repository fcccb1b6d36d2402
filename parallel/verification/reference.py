"""Plain single-process training, the truth that a plan's run is held against. It shares no code with the runtime.

Dropout masks follow the definition in `parallel/graph/ops/dropout.py`, written a second time here, in NumPy.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _mix(x: np.ndarray) -> np.ndarray:
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def mask(seed: int, step: int, op: str, first: int, shape: Sequence[int], p: float) -> np.ndarray:
    """Whether each element of a tensor of `shape` (samples first) is kept; `first` is its first sample's position."""
    word = lambda value: np.array([value], dtype=np.uint32)  # noqa: E731
    with np.errstate(over="ignore"):
        key = _mix(_mix(_mix(word(seed)) + word(step)) + word(zlib.crc32(op.encode())))
        rows = _mix(key + np.arange(first, first + shape[0], dtype=np.uint32))
        columns = _mix(np.arange(int(np.prod(shape[1:])), dtype=np.uint32))
        u = rows[:, None] + columns[None, :]
        u = u * np.uint32(0x7FEB352D)
        u = u ^ (u >> np.uint32(15))
        u = u * np.uint32(0x846CA68B)
    return (u.view(np.int32).astype(np.int64) >= round(p * 2**32) - 2**31).reshape(shape)


class _Dropout(nn.Module):
    def __init__(self, name: str, p: float, at: Position) -> None:
        super().__init__()
        self.name, self.p, self.at = name, p, at

    def forward(self, x: Tensor) -> Tensor:
        kept = mask(self.at.seed, self.at.step, self.name, self.at.first, x.shape, self.p)
        return x * torch.from_numpy(kept).to(x.dtype) / (1 - self.p)


@dataclass
class Position:
    """Where in the training the model is: what the dropout masks depend on."""

    seed: int
    step: int = 0
    first: int = 0


class Reference:
    """A copy of `model` trained by the textbook: forward, backward, SGD, one process, the whole batch."""

    def __init__(self, model: nn.Module, *, seed: int, lr: float, momentum: float, weight_decay: float,
                 passes: int = 1, split: str | None = None) -> None:
        """With `split`, the name of the first fully connected layer, its and later weights are updated in each of
        `passes` passes over a part of the batch (Krizhevsky 2014, section 4.2, the variable batch size)."""
        self.model = copy.deepcopy(model).double()
        self._at = Position(seed)
        for name, layer in list(self.model.named_modules()):
            if isinstance(layer, nn.Dropout):
                parent, _, child = name.rpartition(".")
                setattr(self.model.get_submodule(parent), child, _Dropout(name, layer.p, self._at))
        self._passes = passes if split is not None else 1
        layers: list[nn.Module] = [self.model]
        cut = 1
        if self._passes > 1:
            if not isinstance(self.model, nn.Sequential):
                raise ValueError(f"update=pass has no reference for {type(model).__name__}: it is no nn.Sequential, "
                                 "which could be run a part at a time")
            layers = list(self.model.children())
            cut = [name for name, _ in self.model.named_children()].index(str(split))
        self._front, self._back = nn.Sequential(*layers[:cut]), nn.Sequential(*layers[cut:])

        def sgd(part: nn.Module) -> torch.optim.SGD | None:
            weights = list(part.parameters())
            return torch.optim.SGD(weights, lr=lr, momentum=momentum, weight_decay=weight_decay) if weights else None

        self._front_sgd, self._back_sgd = sgd(self._front), sgd(self._back)
        self.gradients: dict[str, Tensor] = {}
        """Of the last step, by parameter; of a layer that every pass updates, of the last pass."""

    def rows(self, count: int) -> Tensor:
        """Positions in the batch of the `count` samples that are being computed."""
        return torch.arange(self._at.first, self._at.first + count)

    def train_step(self, images: Tensor, labels: Tensor, step: int) -> float:
        """One step on the whole batch; the mean loss."""
        self._at.step, self._at.first = step, 0
        self.model.train()
        self.model.zero_grad()
        features = self._front(images)
        if self._passes == 1:
            loss = F.cross_entropy(self._back(features), labels)
            loss.backward()
            total = loss.item()
        else:
            total = self._pass_by_pass(features, labels)
        self.gradients = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}
        if self._front_sgd is not None:
            self._front_sgd.step()
        if self._back_sgd is not None and self._passes == 1:
            self._back_sgd.step()
        return total

    def _pass_by_pass(self, features: Tensor, labels: Tensor) -> float:
        total, size = 0.0, len(labels) // self._passes
        leaf = features.detach().requires_grad_()
        for i in range(self._passes):
            rows = slice(i * size, (i + 1) * size)
            self._at.first = rows.start
            self._back.zero_grad()
            loss = F.cross_entropy(self._back(leaf[rows]), labels[rows])
            loss.backward()
            total += loss.item() / self._passes
            if self._back_sgd is not None:
                self._back_sgd.step()
        if leaf.grad is not None and features.requires_grad:  # not if the front has no weights
            features.backward(leaf.grad / self._passes)
        return total
