"""The device of a worker: its GPU, one that it shares, or the CPU.

Decided by pure functions from what this process sees (`Machine`), so that every kind of machine can be
tested without it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from parallel.config import ClusterConfig, require
from parallel.results.environment import usable_cpus

VISIBLE = "CUDA_VISIBLE_DEVICES"
SHOWN_GPUS = (VISIBLE, "SLURM_STEP_ID")
"""Variables of a process that may see fewer GPUs than its machine has. (Slurm also hides them with
control groups.)"""
INSTEAD = "cluster.share_gpu=true lets workers share a GPU to check results, and cluster.device=cpu uses none"


@dataclass(frozen=True)
class Machine:
    """What this process may use of a machine."""

    cores: int
    gpus: int
    """GPUs that torch sees."""
    nccl: bool = True
    """Whether torch was built with NCCL."""
    missing: str = ""
    """Why torch sees no GPU, where that is known."""


def this_machine() -> Machine:
    """Return what this process may use."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    built = torch.version.cuda is not None or torch.version.hip is not None
    return Machine(
        usable_cpus() or 1, gpus, dist.is_nccl_available(), "" if gpus else why_no_gpu(os.environ, built)
    )


def why_no_gpu(environment: Mapping[str, str], built: bool) -> str:
    """Return why torch sees no GPU, in brackets, or "" if that is not known; `built`: torch was built for
    GPUs."""
    if not built:
        return " (it was built without CUDA)"
    shown = environment.get(VISIBLE)
    hides = shown is not None and (shown.strip() == "" or shown.strip().startswith("-"))
    return f" ({VISIBLE}={shown} hides them)" if hides else ""


def environment_size() -> int:
    """Return the number of workers that the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def choose_device(cluster: ClusterConfig) -> torch.device:
    """Return this worker's device.

    Raises `ValueError` if the configured device or backend is not available.
    """
    return device_of(cluster, this_machine(), os.environ)


def backend_of(cluster: ClusterConfig, device: torch.device) -> str:
    """Return what moves the messages of several workers: nccl, or gloo for CPUs and shared GPUs."""
    return "nccl" if device.type == "cuda" and not cluster.share_gpu else "gloo"


def device_of(cluster: ClusterConfig, machine: Machine, environment: Mapping[str, str]) -> torch.device:
    """Return the device of a worker with this environment. Raises `ValueError`, as `choose_device`, on all
    workers of a host with the same sentence."""
    none = f"and torch sees none{machine.missing}"
    size = int(environment.get("WORLD_SIZE", "1"))
    require(
        cluster.device != "cuda" or machine.gpus > 0,
        "cluster.device",
        "cuda",
        f"needs a GPU, {none}; use cpu",
    )
    require(
        not cluster.share_gpu or machine.gpus > 0,
        "cluster.share_gpu",
        "true",
        f"needs a GPU, {none}; leave it out, and workers use the CPU",
    )
    require(
        cluster.backend != "nccl" or machine.gpus > 0,
        "cluster.backend",
        "nccl",
        f"needs GPUs, {none}; use gloo",
    )
    if cluster.device == "cpu" or machine.gpus == 0:
        return torch.device("cpu")
    if not cluster.share_gpu and size > 1:
        require(
            cluster.backend != "gloo",
            "cluster.backend",
            "gloo",
            "moves tensors of the CPU, and workers would use GPUs: use cluster.device=cpu, or "
            "cluster.share_gpu=true, which copies them through host memory",
        )
        require(
            machine.nccl,
            "cluster.device",
            cluster.device,
            f"needs NCCL to connect {size} workers on GPUs, and torch was built without it; {INSTEAD}",
        )
    return torch.device("cuda", gpu_index(environment, machine.gpus, share=cluster.share_gpu))


def gpu_index(environment: Mapping[str, str], visible: int, *, share: bool = False) -> int:
    """Return the index of this worker's GPU among the `visible` ones.

    It is the local rank, unless a launcher such as Slurm shows every worker a single GPU, its own. With
    `share`, workers take turns at the GPUs. Raises `ValueError` if there are fewer GPUs than workers on this
    machine.
    """
    local = int(environment.get("LOCAL_RANK", "0"))
    if share:
        return local % visible
    if visible == 1 and any(name in environment for name in SHOWN_GPUS):
        return 0  # `refuse_shared_gpus` compares it with those of the others
    workers = max(local + 1, int(environment.get("LOCAL_WORLD_SIZE", "1")))
    if workers > visible:
        raise ValueError(
            f"{workers} workers on this machine need a GPU each, and torch sees {visible}; {INSTEAD}"
        )
    return local


def refuse_shared_gpus(uuids: Sequence[str]) -> None:
    """Raise `ValueError` if two workers have the same GPU. `uuids` are those of the GPUs, by rank."""
    first: dict[str, int] = {}
    for rank, uuid in enumerate(uuids):
        if uuid in first:
            raise ValueError(
                f"workers {first[uuid]} and {rank} have the same GPU, {uuid}: every worker needs one of its "
                "own (srun --gpus-per-task=1, or all GPUs of a host visible to all of its workers); "
                f"{INSTEAD}"
            )
        first[uuid] = rank


def gather_uuids(store: dist.Store, rank: int, size: int, device: torch.device) -> list[str]:
    """Return the UUIDs of the workers' GPUs by rank, before there is a process group."""
    keys = [f"gpu/{other}" for other in range(size)]
    store.set(keys[rank], str(torch.cuda.get_device_properties(device).uuid))
    store.wait(keys)
    return [uuid.decode() for uuid in store.multi_get(keys)]
