"""An entry point like parallel.train with a fake training, to test the launching. FAKE_JOB says
what it does.

FAKE_JOB is a JSON object from a strategy (or `strategy@rank`) to one of
    ok       the default: an all-reduce over the ranks; then rank 0 writes a record, as a finished run does
    raise    RuntimeError("boom in <strategy>"); the other ranks are left waiting in the all-reduce
    refuse   ValueError("trainer.batch_size=33 …")
    sleep    start a child, leave both process ids as <run_dir>/pid-<pid>, and sleep
"""

from __future__ import annotations

import atexit
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from parallel.cli import application
from parallel.config import Config
from parallel.results.record_files import write_record
from parallel.results.records import Epoch, Record, Workload


def train(config: Config, run_dir: Path) -> None:
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    wanted = json.loads(os.environ.get("FAKE_JOB", "{}"))
    action = wanted.get(f"{config.strategy.name}@{rank}", wanted.get(config.strategy.name, "ok"))
    if rank == 0:
        with open(run_dir / "started", "a", encoding="utf-8") as file:
            file.write(f"world {world}, threads {os.environ.get('OMP_NUM_THREADS')}\n")
    if world == 1:
        act(action, config.strategy.name, run_dir)
    else:
        together(rank, world, lambda: act(action, config.strategy.name, run_dir))
    if rank == 0:
        write_record(run_dir, record(config))


def together(rank: int, world: int, work: Callable[[], None]) -> None:
    import torch  # here, for it takes seconds that a single process need not spend
    import torch.distributed as dist

    dist.init_process_group("gloo")
    atexit.register(time.sleep, 600)  # a group that is open at the end may never let go
    work()
    total = torch.tensor([rank + 1.0])
    dist.all_reduce(total)
    if total.item() != world * (world + 1) / 2:
        raise RuntimeError(f"the all-reduce gave {total.item()}")
    dist.destroy_process_group()
    atexit.unregister(time.sleep)


def act(action: str, strategy: str, run_dir: Path) -> None:
    if action == "raise":
        raise RuntimeError(f"boom in {strategy}")
    if action == "refuse":
        raise ValueError(f"trainer.batch_size=33 can't be split by {strategy}")
    if action == "sleep":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        for pid in (os.getpid(), child.pid):
            (run_dir / f"pid-{pid}").touch()
        time.sleep(600)


def record(config: Config) -> Record:
    """Return a record of one fictitious epoch with the real configuration."""
    model, trainer = config.model, config.trainer
    workload = Workload(
        model=model.name,
        variant=model.variant,
        num_classes=config.data.num_classes or 10,
        image_size=model.image_size,
        data=config.data.name,
        train_images=config.data.train_images or 100,
        batch_size=trainer.batch_size,
        precision=trainer.precision,
    )
    return Record(
        name=config.strategy.name,
        sweep=config.sweep,
        started="2024-01-01T00:00:00Z",
        finished="2024-01-01T00:00:01Z",
        command="fake",
        workload=workload,
        strategy=config.strategy.name,
        label=config.strategy.name,
        baseline=config.strategy.name == "single",
        workers=config.worker_count(),
        threads=1,
        device="cpu",
        backend=None,
        warmup_steps=0,
        config=dataclasses.asdict(config),
        epochs=(Epoch(epoch=1, seconds=1.0),),
    )


if __name__ == "__main__":
    application.main(train)
