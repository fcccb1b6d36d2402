"""Exchanges: the movement of a tensor between the layouts of its producer and its consumer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from parallel.graph.box import Box
from parallel.program.precision import WIDE_BYTES


@dataclass(frozen=True)
class Transfer:
    """A box of a tensor that moves from one worker to another, or stays on one (source =
    target)."""

    source: int
    target: int
    box: Box


@dataclass(frozen=True)
class Exchange:
    """Move the output of op `value`, for one micro-batch, from the boxes held to the boxes needed.

    Backward is the transpose: every box returns to where it came from, and overlaps add up.
    """

    index: int
    micro_batch: int
    value: str
    consumer: str
    holds: Mapping[int, Box]
    needs: Mapping[int, Box]
    adds: bool
    """Whether the boxes held are partial sums, which the forward direction adds where they
    overlap."""
    wide: bool = False
    """Whether it moves float64 with any precision: the statistics of a batch normalisation."""

    @cached_property
    def transfers(self) -> tuple[Transfer, ...]:
        """All non-empty intersections of a box held with a box needed."""
        pairs = (
            (source, target, held & need)
            for source, held in self.holds.items()
            for target, need in self.needs.items()
        )
        return tuple(Transfer(source, target, box) for source, target, box in pairs if not box.empty)

    @cached_property
    def moved(self) -> tuple[Mapping[int, int], Mapping[int, int]]:
        """Elements that each worker sends to others, and that each receives; backward swaps the
        two."""
        # Shapes [workers, dims, 2].
        held, needed = (
            np.array([boxes[worker].spans for worker in boxes], dtype=np.int64)
            for boxes in (self.holds, self.needs)
        )
        overlaps = np.ones((len(held), len(needed)), dtype=np.int64)
        for d in range(held.shape[1]):  # one matrix of all pairs per dim: 1,024 workers make a million pairs
            stops = np.minimum(held[:, None, d, 1], needed[None, :, d, 1])
            overlaps *= np.maximum(0, stops - np.maximum(held[:, None, d, 0], needed[None, :, d, 0]))
        sources, targets = np.array(list(self.holds)), np.array(list(self.needs))
        overlaps[sources[:, None] == targets[None, :]] = 0
        return (
            dict(zip(self.holds, overlaps.sum(axis=1).tolist(), strict=True)),
            dict(zip(self.needs, overlaps.sum(axis=0).tolist(), strict=True)),
        )

    @cached_property
    def workers(self) -> frozenset[int]:
        """Workers that hold or need a part."""
        return frozenset(self.holds) | frozenset(self.needs)

    @property
    def name(self) -> str:
        """Name as `producer>consumer`."""
        return f"{self.value}>{self.consumer}"

    def itemsize(self, itemsize: int) -> int:
        """Return the bytes per element that it moves; activations have `itemsize`."""
        return WIDE_BYTES if self.wide else itemsize
