"""A world sets the process up, and leaves it as it was."""

from __future__ import annotations

import torch

from parallel.config.cluster import ClusterConfig
from parallel.runtime.communication.world import open_world


def flushes_denormals() -> bool:
    """Return whether a denormal result becomes zero."""
    return bool((torch.tensor([1e-308], dtype=torch.float64) * 1e-3 == 0).all())


def test_denormals_are_flushed_in_the_world_alone() -> None:
    with open_world(ClusterConfig(device="cpu", threads=torch.get_num_threads())):
        assert flushes_denormals()
    assert not flushes_denormals()
