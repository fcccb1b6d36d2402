"""Check plans against plain single-process PyTorch, in float64, with dropout on.

    python -m parallel.verify [key=value …] [override …]

    python -m parallel.verify      checks the default plans: every strategy, split and kind of op
    python -m parallel.verify strategy=one_weird_trick strategy.scheme=c workers=4 steps=3

Trains and evaluates both sides on random images, and prints the largest relative differences of
losses, gradients, weights, running statistics and evaluation. If one is above 1e-10, both sides run
again, the first op whose forward or backward differs is printed, and the exit code is 1. Workers use the
GPUs, which they share if there are fewer, or the CPU (cluster.device=cpu).

    steps=3         optimizer steps
    chaos=true      delay messages at random, and fill tensors with NaN until they have arrived
                    (default: for the default plans only)
"""

from __future__ import annotations

import sys

from rich.console import Console

from parallel.cli.command import Command, Given, progress
from parallel.cli.compose import compose_config
from parallel.cli.tables import add_row, plain_table, print_lines
from parallel.cli.values import whole_number
from parallel.config import ClusterConfig, require, require_one_of
from parallel.config.checks import MOST_STEPS
from parallel.runtime.communication.chaos import Chaos
from parallel.verification.parity import TOLERANCE, Difference
from parallel.verification.verify import verify, verify_defaults

COMMAND = Command(__doc__, keys=("steps", "chaos"), width=132)


def body(given: Given, console: Console) -> int:
    """Verify and return the exit code: 0 if everything is equal, otherwise 1."""
    steps = whole_number("steps", given.keys.get("steps", "3"), MOST_STEPS)
    one_strategy = any(override.startswith("strategy=") for override in given.rest)
    delayed = given.keys.get("chaos", "false" if one_strategy else "true")
    require_one_of("chaos", delayed, ("true", "false"))
    chaos = Chaos() if delayed == "true" else None
    config = compose_config(given.rest)
    if one_strategy:
        own_batch = any(
            override.startswith(("trainer.batch_size=", "trainer.batch_per_worker="))
            for override in given.rest
        )
        batch = config.trainer.batch_size if own_batch else None
        found = verify(config, steps, batch, chaos, lambda where: print_lines(console, where))
        return print_one(console, config.strategy.label, found)
    others = [override for override in given.rest if not override.startswith("cluster.")]
    require(
        not others,
        "overrides",
        " ".join(others),
        "need a strategy=NAME; the default plans take only those of cluster",
    )
    return check_defaults(console, steps, chaos, config.cluster)


def print_one(console: Console, label: str, found: Difference) -> int:
    """Print the differences of one strategy."""
    lines = [f"  {name:11}{value:.2e}" for name, value in found.by_quantity.items()]
    lines += [f"  worst at   {found.worst}", *([f"  first difference: {found.first}"] if found.first else [])]
    print_lines(
        console,
        f"{label}: largest relative difference from plain PyTorch in float64",
        *lines,
        f"  {'equal' if found.ok else 'DIFFERENT'}: the bound is {TOLERANCE:.0e}",
    )
    return 0 if found.ok else 1


def check_defaults(console: Console, steps: int, chaos: Chaos | None, cluster: ClusterConfig) -> int:
    """Check the default plans, and print a row for each."""

    def tell(where: str) -> None:
        print_lines(console, where)

    table = plain_table(("plan", "model", "workers", *Difference().by_quantity), words=("plan", "model"))
    wrong: list[str] = []
    with progress("checking the default plans") as show:
        for plan, found in verify_defaults(steps, chaos, wanted=cluster, tell=tell):
            show(f"after {plan.label}")
            values = (f"{value:.1e}" for value in found.by_quantity.values())
            add_row(table, (plan.label, plan.model, str(plan.workers), *values))
            if not found.ok:
                wrong.append(
                    f"{plan.label} is DIFFERENT: worst at {found.worst}; first difference: {found.first}"
                )
    print_lines(console, "largest relative difference from plain PyTorch in float64")
    console.print(table)
    print_lines(console, *wrong, f"{'DIFFERENT' if wrong else 'equal'}: the bound is {TOLERANCE:.0e}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(COMMAND.run(body, sys.argv[1:]))
