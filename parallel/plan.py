"""Show what a plan does before running it.

    python -m parallel.plan [--steps | --yaml] [override …]

    python -m parallel.plan strategy=one_weird_trick workers=2 trainer.batch_size=128
    python -m parallel.plan strategy=one_weird_trick workers=2 --yaml > plan.yaml

Prints the layout of every op and, for each worker, the parameters that it holds, the bytes that it
sends per step, its multiply-adds, and the memory that it needs (an upper estimate). Overrides are
those of parallel.train.

    --steps   print every step of each worker, too
    --yaml    print only the plan file, for strategy=from_file strategy.path=plan.yaml

Starts no process and opens no data set. Exit code 2 for an invalid plan.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from parallel.cli.command import Command, Given
from parallel.cli.compose import compose_config
from parallel.cli.tables import plain_table, print_lines
from parallel.config import Config
from parallel.graph import Graph
from parallel.graph.configured import classes_of, graph_of
from parallel.plans import Plan
from parallel.plans.text import compact
from parallel.prediction.plans import plan_of
from parallel.program.costs import COST_COLUMNS, MEMORY_COLUMNS, cost_rows, memory_rows
from parallel.program.listing import STEP_COLUMNS, step_cells
from parallel.program.lowering import lower
from parallel.results.formatting import count

COMMAND = Command(__doc__, flags=("--steps", "--yaml"))


def describe(config: Config, graph: Graph, plan: Plan) -> list[str]:
    """Return the plan, the model and the layouts as lines."""
    model = config.model
    batches = f"{plan.micro_batches} micro-batches, {plan.pipeline}, " if plan.micro_batches > 1 else ""
    runs = compact(plan)
    width = max(len(names) for names, _ in runs)
    return [
        f"{config.strategy.label}: plan {plan.fingerprint}, {count(plan.workers, 'worker')}, {batches}"
        f"global batch {config.trainer.batch_size}, {config.trainer.precision}",
        f"{model.label}, {model.image_size} px, {classes_of(config)} classes: "
        f"{graph.parameter_count:,} parameters, {graph.multiply_adds / 1e9:.3g} G multiply-adds an image",
        "",
        *(f"  {names:{width}}  {layout}" for names, layout in runs),
        "",
    ]


def show(given: Given, console: Console) -> int:
    """Print the plan and its costs, or its file."""
    config = compose_config(given.rest)
    graph = graph_of(config)
    plan = plan_of(config, graph)
    if "--yaml" in given.flags:
        print(plan, end="")
        return 0
    program = lower(graph, plan, config.trainer.batch_size)
    precision = config.trainer.precision
    print_lines(console, *describe(config, graph, plan))
    console.print(plain_table(COST_COLUMNS, words=("worker",), rows=cost_rows(program, precision)))
    print_lines(console, "")
    console.print(plain_table(MEMORY_COLUMNS, words=("memory",), rows=memory_rows(program, precision)))
    for worker in range(plan.workers) if "--steps" in given.flags else ():
        print_lines(console, "", f"worker {worker}")
        console.print(
            plain_table(
                STEP_COLUMNS, words=("step", "what", "box"), rows=step_cells(program, worker, precision)
            )
        )
    return 0


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code."""
    return COMMAND.run(show, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
