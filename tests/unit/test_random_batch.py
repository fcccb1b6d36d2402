"""Batches of random images."""

from __future__ import annotations

import torch

from parallel.data.random_batch import random_batch


def test_a_batch_depends_only_on_the_arguments() -> None:
    torch.manual_seed(1)
    images, labels = random_batch(50, (3, 4, 5), 7, seed=2, dtype=torch.float64)
    torch.manual_seed(3)
    again = random_batch(50, (3, 4, 5), 7, seed=2, dtype=torch.float64)
    assert torch.equal(images, again[0]) and torch.equal(labels, again[1])
    assert images.shape == (50, 3, 4, 5) and images.dtype == torch.float64
    assert labels.dtype == torch.int64 and set(labels.tolist()) == set(range(7))
    assert not torch.equal(images, random_batch(50, (3, 4, 5), 7, seed=3, dtype=torch.float64)[0])
