"""Order and augmentation of data: the images of a batch, their crops and flips depend only on the
seed.

Every worker draws random numbers for the whole global batch and takes those of its positions. So
the sample at a position does not depend on the worker that loads it, on the number of workers, or
on what was loaded before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Independent streams of one seed, as spawn keys: NumPy pads entropy with zeros, so [s, e] and [s,
# e, 0] would be the same stream.
ORDER, AUGMENT = 0, 1


@dataclass(frozen=True)
class Draws:
    """Crop and flip of every position of a global batch."""

    top: np.ndarray
    """int64 [batch], vertical offset of the crop in pixels"""
    left: np.ndarray
    """int64 [batch], horizontal offset of the crop in pixels"""
    flip: np.ndarray
    """bool [batch], whether the image is mirrored"""

    def take(self, positions: np.ndarray) -> Draws:
        """Return the draws of some positions of the batch."""
        return Draws(self.top[positions], self.left[positions], self.flip[positions])


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """Return the order of an epoch: int64 [count]."""
    return _generator(seed, ORDER, epoch).permutation(count)


def draw(seed: int, epoch: int, step: int, batch: int, room: int, crop: bool, flip: bool) -> Draws:
    """Return the draws of a batch whose stored images are `room` pixels larger than the crop.

    Without `crop`, all crops are at the centre.
    """
    uniform = _generator(seed, AUGMENT, epoch, step).random((batch, 3))
    if crop:
        offsets = (uniform[:, :2] * (room + 1)).astype(np.int64)
    else:
        offsets = np.full((batch, 2), room // 2)
    return Draws(top=offsets[:, 0], left=offsets[:, 1], flip=(uniform[:, 2] < 0.5) & flip)


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
