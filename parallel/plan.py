"""See what a plan does before running it: python -m parallel.plan [--steps | --yaml] [override …]

    python -m parallel.plan strategy=one_weird_trick workers=2 trainer.batch_size=128
    python -m parallel.plan strategy=one_weird_trick workers=2 --yaml > plan.yaml

prints where every op is computed and, for each worker, the parameters that it holds, the bytes that it sends in a
step, its multiply-adds, and the memory that it needs (an upper estimate). The arguments are those of parallel.train.

    --steps   also every step of each worker
    --yaml    only the plan file, for strategy=from_file strategy.path=plan.yaml

No process is started and no data set opened. Exit code 2 for a plan that cannot be.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parallel.cli.compose import compose_config
from parallel.config import Config, require
from parallel.data import known_classes
from parallel.graph import Graph, trace
from parallel.models import build_model
from parallel.plans.plan import Plan
from parallel.plans.text import compact
from parallel.program import Program
from parallel.program.listing import step_rows
from parallel.program.lowering import lower
from parallel.program.precision import ACTIVATION_BYTES
from parallel.program.required_memory import Memory, memory_of
from parallel.results.formatting import size
from parallel.strategies import build_plan
from parallel.strategies.strategy import Setting

FLAGS = ("--steps", "--yaml", "--help", "-h")
WIDTH = 120
"""Columns of the console when it is no terminal."""


def classes_of(config: Config) -> int:
    """Classes of the model: as configured, else those that the data set is known to have."""
    return config.model.num_classes or known_classes(config.data)


def plan_of(config: Config) -> tuple[Graph, Plan]:
    """The configured plan and the model's graph. Raises `ValueError` for a plan that cannot be."""
    require(config.strategy.name != "ddp", "strategy", "ddp", "makes no plan: torch's own DistributedDataParallel runs")
    side = config.model.image_size
    with torch.device("meta"):
        graph = trace(build_model(config.model, classes_of(config), 0), (3, side, side))
    workers = 1 if config.strategy.name == "single" else config.workers or 1
    setting = Setting(config.trainer.batch_size, config.trainer.precision, config.cluster)
    return graph, build_plan(graph, workers, config.strategy, setting)


def show(config: Config, console: Console, steps: bool = False) -> None:
    """Print the plan and what it costs each worker."""
    graph, plan = plan_of(config)
    precision, model = config.trainer.precision, config.model
    program = lower(graph, plan, config.trainer.batch_size)
    label = " ".join(filter(None, (config.strategy.name, config.strategy.scheme)))
    batches = f"{plan.micro_batches} micro-batches, {plan.pipeline}, " if plan.micro_batches > 1 else ""
    lines = [
        f"{label}: plan {plan.fingerprint}, {plan.workers} worker{'s' * (plan.workers > 1)}, {batches}"
        f"global batch {config.trainer.batch_size}, {precision}",
        f"{model.label}, {model.image_size} px, {classes_of(config)} classes: "
        f"{graph.parameter_count:,} parameters, {graph.multiply_adds / 1e9:.3g} G multiply-adds an image",
    ]
    runs = compact(plan)
    width = max(len(names) for names, _ in runs)
    _print(console, *lines, "", *(f"  {names:{width}}  {layout}" for names, layout in runs), "")
    console.print(_costs(program, precision))
    _print(console, "")
    console.print(_memory([memory_of(program, w, precision) for w in range(plan.workers)]))
    if steps:
        for worker in range(plan.workers):
            _print(console, "", f"worker {worker}")
            console.print(_steps(program, worker, precision))


def _print(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _table(words: Sequence[str], numbers: Sequence[str]) -> Table:
    """A table of some columns of words, then of numbers; without lines, so that 100 columns are enough."""
    table = Table(box=None, show_edge=False, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for name in words:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _costs(program: Program, precision: str) -> Table:
    """Per worker: what it holds, sends in a step and computes in a step; a last row for all."""
    rows = []
    for worker in range(program.plan.workers):
        sent = program.sent(worker, ACTIVATION_BYTES[precision])
        rows.append((program.parameters_held(worker), program.parameters_updated(worker), sent.forward, sent.backward,
                     sent.sums, sent.gathers, sent.total, program.multiply_adds(worker)))
    table = _table(["worker"], ["parameters", "momentum", "sent: forward", "backward", "gradients", "weights", "all",
                                "multiply-adds"])
    total = [tuple(map(sum, zip(*rows, strict=True)))] if len(rows) > 1 else []
    for worker, (held, updated, *sent_bytes, operations) in enumerate([*rows, *total]):
        table.add_row("all" if worker == len(rows) else str(worker), f"{held:,}", f"{updated:,}",
                      *map(size, sent_bytes), f"{operations / 1e9:,.2f} G")
    return table


def _memory(memories: Sequence[Memory]) -> Table:
    """Per worker: the parts of its need, and the need, in which a constant is added."""
    names = [field.name for field in dataclasses.fields(Memory) if field.name != "other"]  # it is the same everywhere
    table = _table(["memory"], [*names, "need"])
    for worker, memory in enumerate(memories):
        table.add_row(str(worker), *(size(getattr(memory, name)) for name in names), size(memory.total))
    return table


def _steps(program: Program, worker: int, precision: str) -> Table:
    table = _table(["step", "what", "box"], ["sends", "receives"])
    for row in step_rows(program, worker, ACTIVATION_BYTES[precision]):
        moved = (size(n) if n else "" for n in (row.sent, row.received))
        table.add_row(row.step, Text(row.what), Text(row.box), *moved)  # Text: a box is no markup
    return table


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code: 2 for bad input, after one line on standard error."""
    flags, overrides = [a for a in arguments if a.startswith("-")], [a for a in arguments if not a.startswith("-")]
    if {"--help", "-h"} & {*flags}:
        print((__doc__ or "").rstrip())
        return 0
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    try:
        for flag in flags:
            require(flag in FLAGS, "flag", flag, f"is not known; there are {', '.join(FLAGS)}")
        config = compose_config(overrides)
        if "--yaml" in flags:
            print(plan_of(config)[1], end="")
        else:
            show(config, console, steps="--steps" in flags)
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
