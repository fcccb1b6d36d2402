"""Small complete records for tests, equal except for explicit changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from parallel.cli.choices import CHOICES
from parallel.config import Config, DataConfig, StrategyConfig
from parallel.config.strategy import BASELINE
from parallel.models.alexnet import AlexNetConfig
from parallel.results.hosts import Host
from parallel.results.record_checks import STATED
from parallel.results.records import Epoch, Record, Workload

WORKLOAD = Workload(
    model="alexnet",
    variant="owt",
    num_classes=10,
    image_size=64,
    data="digits",
    train_images=1437,
    batch_size=32,
    precision="fp32",
)
ENVIRONMENT = {
    "host": "bench",
    "os": "Linux",
    "cpu": "Some CPU",
    "cpu_count": 2,
    "gpus": [],
    "python": "3.11.7",
    "torch": "2.13.0",
    "numpy": "2.4.6",
    "hydra": "1.3.8",
    "wandb": "0.31.0",
    "parallel": "0.1",
    "git_commit": "0" * 40,
    "git_dirty": False,
    "variables": {},
}


def made_hosts(*workers: int, bandwidth: float | None = None) -> tuple[Host, ...]:
    """Return hosts with these numbers of workers."""
    first = [sum(workers[:i]) for i in range(len(workers) + 1)]
    return tuple(
        Host(
            index=i,
            name=f"host{i}",
            workers=tuple(range(first[i], first[i + 1])),
            threads=1,
            cores=2,
            memory_bytes=8 * 10**9,
            interface="eth0",
            bandwidth=bandwidth,
        )
        for i in range(len(workers))
    )


def made_epochs(seconds: Sequence[float]) -> tuple[Epoch, ...]:
    """Return epochs with these times, falling loss and rising accuracy."""
    return tuple(
        Epoch(
            epoch=i,
            seconds=s,
            images_per_second=1437 / s,
            train_loss=2.3 / i,
            val_loss=2.2 / i,
            val_top1=1 - 0.5 / i,
            val_top5=1 - 0.1 / i,
            data_wait_s=0.05 * s,
            compute_s=0.7 * s,
            communication_s=0.15 * s,
            idle_s=0.1 * s,
            bytes_sent=10_000_000,
            peak_memory_bytes=2 * 10**9,
            lr=0.002,
            checkpoint_s=0.01 * s,
        )
        for i, s in enumerate(seconds, start=1)
    )


def made_record(
    strategy: str = "single", seconds: Sequence[float] = (10.0, 11.0, 12.0), **changes: Any
) -> Record:
    """Return a record of `strategy` with these epoch times; `changes` are fields of `Record`."""
    choice: Any = CHOICES["strategy"].get(strategy, StrategyConfig(strategy))
    scheme = {"scheme": changes["scheme"]} if changes.get("scheme") is not None else {}
    options = dataclasses.replace(choice, **scheme, **changes.pop("options", {}))
    config = dataclasses.asdict(Config(AlexNetConfig(), DataConfig("digits"), options))
    config["trainer"].update(changes.pop("trainer", {}))
    values: dict[str, Any] = {
        "label": options.full_label(None),
        "scheme": options.scheme,
        "baseline": strategy == BASELINE and changes.get("workers", 1) == 1,
        "name": strategy,
        "sweep": "demo",
        "started": "2026-01-02T03:04:05Z",
        "finished": "2026-01-02T03:05:05Z",
        "command": f"python -m parallel.train strategy={strategy}",
        "workload": WORKLOAD,
        "strategy": strategy,
        "workers": 1 if strategy == BASELINE else 2,
        "threads": 1,
        "device": "cpu",
        "backend": "gloo",
        "warmup_steps": 2,
        "parameters": 57_044_810,
        "parameter_bytes": 228_179_240,
        "forward_flops": 100_000_000,
        "plan": f"plan of {strategy}",
        "config": config,
        "environment": ENVIRONMENT,
        "epochs": made_epochs(seconds),
    }
    return of_workload(Record(**{**values, **changes}))


def of_workload(record: Record, **changes: Any) -> Record:
    """Return a record of a workload with these changes, and the configuration that states it."""
    workload = dataclasses.replace(record.workload, **changes)
    config = dict(record.config)
    for field, (group, option) in STATED.items():
        if group in config and option in config[group]:
            value = getattr(workload, field)
            stated = value.partition(" (")[0] if field == "data" else value  # other images may stand in
            config[group] = {**config[group], option: stated}
    return dataclasses.replace(record, workload=workload, config=config)
