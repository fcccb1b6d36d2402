"""Which GPU a worker uses, and how many cores, from its launcher's variables."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest

from parallel.config import ClusterConfig
from parallel.data.build import cores, own_cores
from parallel.runtime.communication.device import (
    Machine,
    device_of,
    gpu_index,
    refuse_shared_gpus,
    why_no_gpu,
)


@pytest.mark.parametrize(
    "environment, visible, index",
    [
        ({}, 1, 0),
        ({"LOCAL_RANK": "3"}, 4, 3),
        ({"LOCAL_RANK": "3", "SLURM_STEP_ID": "0"}, 4, 3),
        ({"LOCAL_RANK": "3", "SLURM_STEP_ID": "0"}, 1, 0),
        ({"LOCAL_RANK": "3", "CUDA_VISIBLE_DEVICES": "3"}, 1, 0),
        ({"SLURM_STEP_ID": "0"}, 2, 0),
    ],
)
def test_gpu_of_a_worker(environment: dict[str, str], visible: int, index: int) -> None:
    assert gpu_index(environment, visible) == index


@pytest.mark.parametrize(
    "environment, visible, workers",
    [
        ({"LOCAL_RANK": "1"}, 1, 2),
        ({"LOCAL_RANK": "3", "SLURM_STEP_ID": "0"}, 2, 4),
        ({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3"}, 2, 3),  # rank 0 says what the others say
    ],
)
def test_fewer_gpus_than_workers(environment: dict[str, str], visible: int, workers: int) -> None:
    words = (
        f"{workers} workers on this machine need a GPU each, and torch sees {visible}; cluster.share_gpu=true lets "
        "workers share a GPU to check results, and cluster.device=cpu uses none"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        gpu_index(environment, visible)


@pytest.mark.parametrize("visible, indices", [(1, [0, 0, 0, 0]), (3, [0, 1, 2, 0]), (8, [0, 1, 2, 3])])
def test_workers_that_share_gpus_take_turns(visible: int, indices: list[int]) -> None:
    shared = [gpu_index({"LOCAL_RANK": str(rank)}, visible, share=True) for rank in range(4)]
    assert shared == indices


AUTO, CUDA, SHARE = ClusterConfig(), ClusterConfig(device="cuda"), ClusterConfig(share_gpu=True)
FOUR = {"WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}


@pytest.mark.parametrize(
    "cluster, machine, environment, device",
    [
        (AUTO, Machine(2, 0), FOUR, "cpu"),
        (AUTO, Machine(2, 0, nccl=False), FOUR, "cpu"),
        (ClusterConfig(device="cpu"), Machine(2, 8), FOUR, "cpu"),
        (ClusterConfig(backend="gloo"), Machine(2, 1), {}, "cuda:0"),
        (AUTO, Machine(2, 4), FOUR, "cuda:1"),
        (AUTO, Machine(2, 1, nccl=False), {}, "cuda:0"),
        (SHARE, Machine(2, 1, nccl=False), FOUR, "cuda:0"),
        (SHARE, Machine(2, 2), FOUR, "cuda:1"),
    ],
)
def test_device_of_a_worker(
    cluster: ClusterConfig, machine: Machine, environment: dict[str, str], device: str
) -> None:
    assert str(device_of(cluster, machine, environment)) == device


INSTEAD = "cluster.share_gpu=true lets workers share a GPU to check results, and cluster.device=cpu uses none"


@pytest.mark.parametrize(
    "cluster, machine, words",
    [
        (CUDA, Machine(2, 0), "cluster.device=cuda needs a GPU, and torch sees none; use cpu"),
        (
            *(SHARE, Machine(2, 0, missing=" (it was built without CUDA)")),
            "cluster.share_gpu=true needs a GPU, and torch sees none (it was built without CUDA); leave it out, "
            "and workers use the CPU",
        ),
        (
            *(ClusterConfig(backend="nccl"), Machine(2, 0)),
            "cluster.backend=nccl needs GPUs, and torch sees none; use gloo",
        ),
        (AUTO, Machine(2, 2), f"4 workers on this machine need a GPU each, and torch sees 2; {INSTEAD}"),
        (
            *(CUDA, Machine(2, 4, nccl=False)),
            "cluster.device=cuda needs NCCL to connect 4 workers on GPUs, and torch was built without it; "
            + INSTEAD,
        ),
        (
            *(ClusterConfig(backend="gloo"), Machine(2, 4)),
            "cluster.backend=gloo moves tensors of the CPU, and workers would use GPUs: use cluster.device=cpu, "
            "or cluster.share_gpu=true, which copies them through host memory",
        ),
    ],
)
def test_devices_that_are_not_there(cluster: ClusterConfig, machine: Machine, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        device_of(cluster, machine, FOUR)


@pytest.mark.parametrize(
    "environment, built, why",
    [
        ({}, True, ""),
        ({"CUDA_VISIBLE_DEVICES": "0"}, True, ""),
        ({"CUDA_VISIBLE_DEVICES": ""}, True, " (CUDA_VISIBLE_DEVICES= hides them)"),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, True, " (CUDA_VISIBLE_DEVICES=-1 hides them)"),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, False, " (it was built without CUDA)"),
    ],
)
def test_why_there_is_no_gpu(environment: dict[str, str], built: bool, why: str) -> None:
    assert why_no_gpu(environment, built) == why


@pytest.mark.parametrize(
    "options, words",
    [
        (
            {"share_gpu": True, "device": "cpu"},
            "cluster.share_gpu=true needs a GPU, and cluster.device=cpu uses none: leave out one of them",
        ),
        ({"share_gpu": True, "backend": "nccl"}, "cluster.share_gpu=true needs cluster.backend=gloo: "),
        (
            {"device": "cpu", "backend": "nccl"},
            "cluster.backend=nccl moves tensors of GPUs, and cluster.device=cpu has none: use gloo",
        ),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
        ClusterConfig(**options)


def test_workers_with_the_same_gpu() -> None:
    refuse_shared_gpus(["a", "b", "c"])
    with pytest.raises(
        ValueError, match=re.escape("workers 1 and 3 have the same GPU, b: every worker needs")
    ):
        refuse_shared_gpus(["a", "b", "c", "b"])


@pytest.mark.parametrize(("given", "expected"), [("2", 2), ("64", 4), (None, 4), ("", 4), ("0", 4)])
def test_cores_of_a_task(given: str | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    if given is None:
        monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    else:
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", given)
    assert cores() == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 16),
        ({"LOCAL_WORLD_SIZE": "1"}, 16),
        ({"LOCAL_WORLD_SIZE": "3"}, 5),
        ({"LOCAL_WORLD_SIZE": "64"}, 1),
        ({"LOCAL_WORLD_SIZE": "4", "SLURM_CPUS_PER_TASK": "4"}, 4),
        ({"LOCAL_WORLD_SIZE": "4", "SLURM_CPUS_PER_TASK": "16", "TORCHELASTIC_RUN_ID": "none"}, 4),
        ({"LOCAL_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, 16),
    ],
)
def test_workers_of_a_host_share_its_cores_for_decoding(
    environment: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    for name in (
        "LOCAL_WORLD_SIZE",
        "SLURM_CPUS_PER_TASK",
        "TORCHELASTIC_RUN_ID",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert own_cores() == expected
