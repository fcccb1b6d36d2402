"""Costs of a program for each worker as text: parameters, bytes sent, multiply-adds, memory."""

from __future__ import annotations

import dataclasses

from parallel.program.precision import ACTIVATION_BYTES
from parallel.program.program import Program
from parallel.program.required_memory import Memory, memory_of
from parallel.results.formatting import size

COST_COLUMNS = (
    "worker",
    "parameters",
    "momentum",
    "sent: forward",
    "backward",
    "gradients",
    "weights",
    "all",
    "multiply-adds",
)
MEMORY_PARTS = tuple(field.name for field in dataclasses.fields(Memory) if field.name != "other")
"""Parts of the required memory that differ between programs; `other` is a constant."""
MEMORY_COLUMNS = ("memory", *MEMORY_PARTS, "need")


def cost_rows(program: Program, precision: str) -> list[list[str]]:
    """Return a row under `COST_COLUMNS` for each worker and one step, and totals if there are
    several."""
    numbers = []
    for worker in range(program.plan.workers):
        sent = program.sent(worker, ACTIVATION_BYTES[precision])
        numbers.append(
            (
                program.parameters_held(worker),
                program.parameters_updated(worker),
                sent.forward,
                sent.backward,
                sent.sums,
                sent.gathers,
                sent.total,
                program.multiply_adds(worker),
            )
        )
    names = [str(worker) for worker in range(len(numbers))]
    if len(numbers) > 1:
        names.append("all")
        numbers.append(tuple(map(sum, zip(*numbers, strict=True))))  # type: ignore[arg-type]
    return [
        [name, f"{held:,}", f"{updated:,}", *map(size, sent_bytes), f"{operations / 1e9:,.2f} G"]
        for name, (held, updated, *sent_bytes, operations) in zip(names, numbers, strict=True)
    ]


def memory_rows(program: Program, precision: str) -> list[list[str]]:
    """Return a row for each worker under `MEMORY_COLUMNS`."""
    rows = []
    for worker in range(program.plan.workers):
        memory = memory_of(program, worker, precision)
        rows.append(
            [str(worker), *(size(getattr(memory, part)) for part in MEMORY_PARTS), size(memory.total)]
        )
    return rows
