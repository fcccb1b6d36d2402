"""Section `parity`: every strategy equals plain PyTorch in float64, staged on one GPU and over NCCL.

With several GPUs, the plans that have no more workers than GPUs also run over NCCL. With one, NCCL's
collectives run on one rank: that shows that they start and end, no more.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from gpu_sections.section import Ending, Setting, code_block, run_command


def run(setting: Setting) -> Ending:
    """Check all default plans."""
    _one_rank(setting, "gloo" if setting.tiny else "nccl")
    if setting.tiny:
        return _verify(
            setting, "strategy=data_parallel", "workers=2", "model.image_size=64", "cluster.device=cpu"
        )
    endings = [_verify(setting, "chaos=false", "cluster.device=cuda", "cluster.share_gpu=true")]
    if torch.cuda.device_count() > 1:
        endings.append(_verify(setting, "chaos=false", "cluster.device=cuda"))
    return Ending.PASSED if all(ending is Ending.PASSED for ending in endings) else Ending.FAILED


def _verify(setting: Setting, *overrides: str) -> Ending:
    done = run_command(setting, "-m", "parallel.verify", *overrides)
    setting.write(*code_block(done.stdout))
    return Ending.PASSED if done.returncode == 0 else Ending.FAILED


def _one_rank(setting: Setting, backend: str) -> None:
    """Run the collectives that the runtime uses; raises if one of them computes something else."""
    device = torch.device(setting.device, 0)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend, store=dist.HashStore(), rank=0, world_size=1, device_id=device if backend == "nccl" else None
    )
    given = torch.arange(8.0, device=device)
    summed, gathered, shard = given.clone(), torch.zeros_like(given), torch.zeros_like(given)
    dist.all_reduce(summed)
    dist.all_gather_into_tensor(gathered, given)
    dist.reduce_scatter_tensor(shard, given)
    for name, found in (("all-reduce", summed), ("all-gather", gathered), ("reduce-scatter", shard)):
        if not torch.equal(found, given):
            raise RuntimeError(f"{backend}'s {name} on one rank changed the values: {found.tolist()}")
    dist.destroy_process_group()
    setting.write(
        f"{backend} on one rank: all-reduce, all-gather and reduce-scatter return what they were given.", ""
    )
