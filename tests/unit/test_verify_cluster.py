"""Where a verification runs on machines with no GPU, one, several, and fewer than workers."""

from __future__ import annotations

import pytest

from parallel.config import ClusterConfig
from parallel.runtime.communication.device import Machine
from parallel.verification.cluster import cluster_for

AUTO, CPU, CUDA = ClusterConfig(), ClusterConfig(device="cpu"), ClusterConfig(device="cuda")
SHARE = ClusterConfig(share_gpu=True)
STAGED = "messages go through host memory (cluster.share_gpu=true), not through NCCL"


@pytest.mark.parametrize(
    ("cluster", "machine", "workers", "chaos", "expected", "where"),
    [
        (AUTO, Machine(2, 0), 2, True, ("cpu", "auto", False), "2 workers on the CPU"),
        (CPU, Machine(2, 8), 3, True, ("cpu", "auto", False), "3 workers on the CPU"),
        (AUTO, Machine(2, 1), 1, True, ("cuda", "auto", False), "1 worker on a GPU"),
        (SHARE, Machine(2, 1), 1, False, ("cuda", "auto", False), "1 worker on a GPU"),
        (AUTO, Machine(2, 1), 4, False, ("cuda", "gloo", True), f"4 workers on 1 GPU: {STAGED}"),
        (CUDA, Machine(2, 2), 3, True, ("cuda", "gloo", True), f"3 workers on 2 GPUs: {STAGED}"),
        (CUDA, Machine(2, 2), 2, False, ("cuda", "auto", False), "2 workers on 2 GPUs, over NCCL"),
        (
            *(AUTO, Machine(2, 8), 4, True, ("cuda", "gloo", True)),
            f"4 workers on 8 GPUs: {STAGED}; chaos=false uses NCCL",
        ),
        (SHARE, Machine(2, 8), 4, False, ("cuda", "gloo", True), f"4 workers on 8 GPUs: {STAGED}"),
        (
            *(ClusterConfig(backend="gloo"), Machine(2, 8), 2, False, ("cuda", "gloo", True)),
            f"2 workers on 8 GPUs: {STAGED}",
        ),
        (AUTO, Machine(2, 8, nccl=False), 4, False, ("cuda", "gloo", True), f"4 workers on 8 GPUs: {STAGED}"),
    ],
)
def test_where_a_verification_runs(
    cluster: ClusterConfig,
    machine: Machine,
    workers: int,
    chaos: bool,
    expected: tuple[str, str, bool],
    where: str,
) -> None:
    found, sentence = cluster_for(cluster, machine, workers, chaos=chaos)
    assert ((found.device, found.backend, found.share_gpu), sentence) == (expected, where)


@pytest.mark.parametrize("cluster", [CUDA, SHARE])
def test_a_gpu_that_is_not_there(cluster: ClusterConfig) -> None:
    with pytest.raises(ValueError, match=r"needs a GPU, and torch sees none \(hidden\); "):
        cluster_for(cluster, Machine(2, 0, missing=" (hidden)"), 2, chaos=False)
