"""The reference of verification: training and evaluation in plain single-process PyTorch.

It shares no code with the runtime. Dropout masks are defined in `parallel/graph/ops/dropout.py` and
implemented a second time here, in NumPy. Top-1 and top-5 use the rank of the label's logit instead
of `topk`.
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


@dataclass(frozen=True)
class Optimizer:
    """Hyperparameters of SGD."""

    lr: float
    momentum: float
    weight_decay: float


@dataclass(frozen=True)
class Passes:
    """Variable batch size (Krizhevsky 2014, section 4.2): layers from `first` on are updated in
    every pass."""

    count: int
    first: str
    """Name of the first fully connected layer."""


class Reference:
    """A copy of `model`, trained in one process on the whole batch with SGD."""

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, *, seed: int, passes: Passes | None = None
    ) -> None:
        """Raises `ValueError` if `passes` is given and the model is not an `nn.Sequential`."""
        self.model = copy.deepcopy(model).double()
        self._at = _Position(seed)
        for name, layer in list(self.model.named_modules()):
            if isinstance(layer, nn.Dropout):
                parent, _, child = name.rpartition(".")
                setattr(self.model.get_submodule(parent), child, _Dropout(name, layer.p, self._at))
        self._passes = 1 if passes is None else passes.count
        layers: list[nn.Module] = [self.model]
        cut = 1
        if passes is not None and passes.count > 1:
            if not isinstance(self.model, nn.Sequential):
                raise ValueError(
                    f"update=pass has no reference for {type(model).__name__}: the model must be an "
                    "nn.Sequential, so that its parts can run separately"
                )
            layers = list(self.model.children())
            cut = [name for name, _ in self.model.named_children()].index(passes.first)
        self._front, self._back = nn.Sequential(*layers[:cut]), nn.Sequential(*layers[cut:])

        def sgd(part: nn.Module) -> torch.optim.SGD | None:
            weights = list(part.parameters())
            return (
                torch.optim.SGD(
                    weights, lr=optimizer.lr, momentum=optimizer.momentum, weight_decay=optimizer.weight_decay
                )
                if weights
                else None
            )

        self._front_sgd, self._back_sgd = sgd(self._front), sgd(self._back)
        self.gradients: dict[str, Tensor] = {}
        """Gradients of the last step by parameter; those of the last pass for layers that every
        pass updates."""

    @property
    def weights(self) -> dict[str, Tensor]:
        """Parameters by name."""
        return {name: p.detach() for name, p in self.model.named_parameters()}

    @property
    def statistics(self) -> dict[str, Tensor]:
        """Running means and variances of batch normalisations by name."""
        return {name: b for name, b in self.model.named_buffers() if not name.endswith("num_batches_tracked")}

    def rows(self, count: int) -> Tensor:
        """Return the positions in the batch of the `count` samples of the current pass."""
        return torch.arange(self._at.first, self._at.first + count)

    def train_step(self, images: Tensor, labels: Tensor, step: int) -> float:
        """Train one step on the whole batch and return the mean loss."""
        self._at.step = step
        self._at.first = 0
        self.model.train()
        self.model.zero_grad()
        features = self._front(images)
        if self._passes == 1:
            loss = F.cross_entropy(self._back(features), labels)
            loss.backward()
            total = loss.item()
        else:
            total = self._pass_by_pass(features, labels)
        self.gradients = {
            name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None
        }
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

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return the logits in evaluation mode: dropout off, running statistics."""
        self.model.eval()
        logits: Tensor = self.model(images)
        return logits


def evaluate(logits: Tensor, labels: Tensor) -> list[float]:
    """Return [summed loss, top-1 hits, top-5 hits, samples] over the rows whose label is not −1."""
    logits, labels = logits[labels >= 0], labels[labels >= 0]
    own = logits.gather(1, labels[:, None])
    rank = (logits > own).sum(dim=1)
    loss = (torch.logsumexp(logits, dim=1) - own[:, 0]).sum()
    return [loss.item(), float((rank == 0).sum()), float((rank < 5).sum()), float(len(labels))]


@dataclass
class _Position:
    """The step and the samples that dropout masks depend on."""

    seed: int
    step: int = 0
    first: int = 0


class _Dropout(nn.Module):
    def __init__(self, name: str, p: float, at: _Position) -> None:
        super().__init__()
        self.name, self.p, self.at = name, p, at

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = mask(self.at.seed, self.at.step, self.name, self.at.first, x.shape, self.p)
        return x * torch.from_numpy(kept).to(x.dtype) / (1 - self.p)


def mask(seed: int, step: int, op: str, first: int, shape: Sequence[int], p: float) -> np.ndarray:
    """Return which elements of a tensor of `shape` (samples first) are kept.

    `first` is the position of the first sample in the batch.
    """
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


def _mix(x: np.ndarray) -> np.ndarray:
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))
