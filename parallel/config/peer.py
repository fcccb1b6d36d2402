"""Options of the outside references: other tools that train the same network in data parallel.

A peer runs no plan. Its options are a subclass of `PeerConfig` in its file in
`parallel/runtime/peers/`; those of `ddp` are in `parallel/config/ddp.py`, because predictions use
them, too.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from parallel.config.checks import require, require_one_of
from parallel.config.strategy import StrategyConfig

STOCK, OURS = "stock", "ours"
EXTRA = "pip install -e '.[peers]'"
"""Command that installs the packages of all peers."""


@dataclass(frozen=True)
class PeerConfig(StrategyConfig):
    """Options that all peers share."""

    dropout: str = field(default=STOCK, kw_only=True)
    """stock: the tool's users' nn.Dropout, with torch's random numbers; ours: the masks of the
    plans, with which the losses of every step are those of `single`."""

    makes_plan: ClassVar[bool] = False
    tool: ClassVar[str] = ""
    """Name of the tool in messages."""
    packages: ClassVar[Mapping[str, str]] = {}
    """Packages that it needs beside torch: module → name for pip."""
    compiles: ClassVar[bool] = False
    """Whether it takes trainer.compile=true."""
    shares_gpu: ClassVar[bool] = False
    """Whether it works where workers share a GPU (cluster.share_gpu): gloo sums tensors of a GPU and sends
    them from one worker to all, and nothing else."""

    def __post_init__(self) -> None:
        require_one_of("strategy.dropout", self.dropout, (STOCK, OURS))

    @property
    def all_reduce_mb(self) -> float | None:
        """Size of the buckets of gradients that are all-reduced during backward, as in DDP. None: the
        tool communicates in another way, which has no cost model."""
        return None

    @property
    def first_all_reduce_mb(self) -> float | None:
        """Size of the first bucket. None: the same as of the others."""
        return None

    @property
    def volume(self) -> float:
        """Bytes that a worker sends in a step, in units of (K−1)/K · the parameters' bytes: a ring's
        reduce-scatter and all-gather count one each (Rajbhandari et al. 2020, section 7)."""
        return 2.0

    def check_equal_parts(self, batch_size: int, workers: int) -> None:
        """Raise `ValueError` if the batch does not divide equally: tools average the workers' means."""
        require(
            batch_size % workers == 0,
            "trainer.batch_size",
            batch_size,
            f"must be a multiple of workers={workers} for strategy={self.name}, which averages equal parts",
        )

    def check_precision(self, precision: str) -> None:
        """Raise `ValueError` if the tool cannot train in it."""

    def require_installed(self) -> None:
        """Raise `ValueError` with pip's command if a package is missing."""
        missing = [pip for module, pip in self.packages.items() if importlib.util.find_spec(module) is None]
        if missing:
            raise ValueError(
                f"strategy={self.name} needs the package {missing[0]}, which is not installed: "
                f"use `pip install {missing[0]}`, or `{EXTRA}` for all peers"
            )
