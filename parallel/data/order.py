"""Which images a batch holds and how each is cropped and flipped: functions of the seed and of nothing else.

Every worker draws for the whole global batch and then takes its positions, so that what is at a position does not
depend on which worker loads it, on how many workers there are, or on what was loaded before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Streams of one seed. They are spawn keys, not more entropy: NumPy pads entropy with zeros, so that [s, e] and
# [s, e, 0] would be one stream.
ORDER, AUGMENT = 0, 1


@dataclass(frozen=True)
class Draws:
    """Crop and flip of every position of a global batch."""

    top: np.ndarray
    """int64 [batch], offset of the crop in pixels"""
    left: np.ndarray
    """int64 [batch]"""
    flip: np.ndarray
    """bool [batch]"""

    def take(self, positions: np.ndarray) -> Draws:
        return Draws(self.top[positions], self.left[positions], self.flip[positions])


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of an epoch: int64 [count]."""
    return _generator(seed, ORDER, epoch).permutation(count)


def draw(seed: int, epoch: int, step: int, batch: int, room: int, crop: bool, flip: bool) -> Draws:
    """For a batch whose stored images are `room` pixels larger than the crop; the centre if not `crop`."""
    uniform = _generator(seed, AUGMENT, epoch, step).random((batch, 3))
    if crop:
        offsets = (uniform[:, :2] * (room + 1)).astype(np.int64)
    else:
        offsets = np.full((batch, 2), room // 2)
    return Draws(top=offsets[:, 0], left=offsets[:, 1], flip=(uniform[:, 2] < 0.5) & flip)


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
