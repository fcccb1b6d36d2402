"""Where a verification runs: on the GPUs of this machine if it has any, shared where workers are more."""

from __future__ import annotations

from dataclasses import replace

from parallel.config import ClusterConfig
from parallel.results.formatting import count
from parallel.runtime.communication.device import Machine, device_of

SHARED = "messages go through host memory (cluster.share_gpu=true), not through NCCL"


def cluster_for(
    cluster: ClusterConfig, machine: Machine, workers: int, *, chaos: bool
) -> tuple[ClusterConfig, str]:
    """Return the configuration of `workers` workers on this machine, and a sentence on where they run.

    `chaos` delays messages in host memory. Raises `ValueError` if the configured device is not there.
    """
    if workers == 1 and cluster.share_gpu:
        cluster = replace(cluster, share_gpu=False)
    # Whether the device is there; whether workers have one each is decided below.
    device = device_of(replace(cluster, backend="auto"), machine, {}).type
    if device == "cpu":
        return replace(cluster, device="cpu"), f"{count(workers, 'worker')} on the CPU"
    if workers == 1:
        return replace(cluster, device="cuda"), "1 worker on a GPU"
    few = f"{workers} workers on {count(machine.gpus, 'GPU')}"
    staged = cluster.share_gpu or cluster.backend == "gloo" or machine.gpus < workers or not machine.nccl
    if staged or chaos:
        why = "" if staged else "; chaos=false uses NCCL"
        return replace(cluster, device="cuda", backend="gloo", share_gpu=True), f"{few}: {SHARED}{why}"
    return replace(cluster, device="cuda"), f"{few}, over NCCL"
