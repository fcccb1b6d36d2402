"""Time different ways to sum a gradient. The results are why the runtime uses point-to-point
messages.

    python -m parallel.torchrun --nproc-per-node 2 scripts/bench_messages.py

Prints medians over interleaved rounds, timed between barriers, for each size:

    all_reduce          torch's all-reduce of the whole gradient
    all_to_all_single   a worker receives the others' parts of its shard, by a collective
    messages, scatter   the same, by point-to-point messages
    all_gather          a worker receives the others' shards, by a collective
    messages, gather    the same, by point-to-point messages
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from parallel.runtime.communication.opening import keep_freed_memory

ROUNDS = 9
"""Timed rounds, after an untimed one."""
SIZES = {"1 MB": 1 << 18, "8 MB": 1 << 21, "67 MB": 1 << 24, "151 MB (fc6)": 9216 * 4096}


def ways(size: int, rank: int, workers: int) -> dict[str, Callable[[], None]]:
    """Return the functions to time, by name, on float32 tensors of `size` elements."""
    whole, parameters = torch.randn(size), torch.randn(size)
    own = size // workers
    received = torch.empty(workers, own)
    peers = [peer for peer in range(workers) if peer != rank]

    def shard(tensor: torch.Tensor, worker: int) -> torch.Tensor:
        return tensor[worker * own : (worker + 1) * own]

    def point_to_point(sends: list[torch.Tensor], receives: list[torch.Tensor]) -> None:
        works = [dist.irecv(tensor, peer) for tensor, peer in zip(receives, peers, strict=True)]
        works += [dist.isend(tensor, peer) for tensor, peer in zip(sends, peers, strict=True)]
        for work in works:
            if work is not None:
                work.wait()

    def all_reduce() -> None:
        dist.all_reduce(whole)

    def scatter_collective() -> None:
        dist.all_to_all_single(received.view(-1), whole[: own * workers])

    def scatter_messages() -> None:
        point_to_point([shard(whole, peer) for peer in peers], [received[peer] for peer in peers])

    def gather_collective() -> None:
        dist.all_gather(
            [shard(parameters, worker) for worker in range(workers)], shard(parameters, rank).clone()
        )

    def gather_messages() -> None:
        point_to_point([shard(parameters, rank) for _ in peers], [shard(parameters, peer) for peer in peers])

    return {
        "all_reduce": all_reduce,
        "all_to_all_single": scatter_collective,
        "messages, scatter": scatter_messages,
        "all_gather": gather_collective,
        "messages, gather": gather_messages,
    }


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    dist.init_process_group("gloo")
    rank, workers = dist.get_rank(), dist.get_world_size()
    names: list[str] = []
    for label, size in SIZES.items():
        timed = ways(size, rank, workers)
        seconds: dict[str, list[float]] = {name: [] for name in timed}
        for _ in range(ROUNDS + 1):
            for name, run in timed.items():
                dist.barrier()
                begin = time.perf_counter()
                run()
                dist.barrier()
                seconds[name].append(time.perf_counter() - begin)
        if rank == 0:
            if not names:
                names = list(timed)
                print(f"milliseconds, medians of {ROUNDS}; {workers} workers, {os.cpu_count()} cores")
                print(f"{'':14}" + "".join(f"{name:>20}" for name in names))
            cells = "".join(f"{1000 * statistics.median(seconds[name][1:]):20.1f}" for name in names)
            print(f"{label:14}{cells}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
