"""Validations as tables and sentences: the plans, the statistics of subsets, whether the targets
are met."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from parallel.results.formatting import count, milliseconds, percent, signed_percent
from parallel.results.validation import KINDS, Statistics, ValidatedPlan, Validation, groups, statistics

Column = tuple[str, Callable[[ValidatedPlan], str]]
"""Heading, and the cell of a plan."""


def _predicted_and_measured(part: str) -> Callable[[ValidatedPlan], str]:
    return lambda plan: (
        f"{milliseconds(getattr(plan.predicted, part))} | {milliseconds(getattr(plan.measured, part))}"
    )


COLUMNS: tuple[Column, ...] = (
    ("plan", lambda plan: plan.name),
    ("kind", lambda plan: plan.kind),
    ("held out", lambda plan: "yes" if plan.held_out else ""),
    ("predicted ms", lambda plan: milliseconds(plan.predicted_s)),
    ("measured", lambda plan: milliseconds(plan.measured_s)),
    ("Q1–Q3", lambda plan: f"{milliseconds(plan.first_quartile_s)}–{milliseconds(plan.third_quartile_s)}"),
    ("error", lambda plan: signed_percent(plan.error)),
    ("compute ms, predicted | measured", _predicted_and_measured("compute_s")),
    ("exposed", _predicted_and_measured("exposed_s")),
    ("idle", _predicted_and_measured("idle_s")),
)
WORDS = ("plan", "kind", "held out", "plans")
"""Columns of text; the others are numbers."""
SUMMARY = (
    "plans",
    "number",
    "mean error",
    "largest",
    "τ",
    "regret",
    "signed error",
    "of compute",
    "of exposed",
    "of idle",
)


def fastest_first(plans: Sequence[ValidatedPlan]) -> list[ValidatedPlan]:
    """Return the plans in the order of tables."""
    return sorted(plans, key=lambda plan: plan.measured_s)


def plan_table(plans: Sequence[ValidatedPlan]) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of the plans, the fastest first."""
    rows = [[cell(plan) for _, cell in COLUMNS] for plan in fastest_first(plans)]
    return [name for name, _ in COLUMNS], rows


def describe(validation: Validation) -> str:
    """Return a description of the measurement in one line."""
    return (
        f"{validation.model}, {validation.image_size} px, {validation.num_classes} classes, "
        f"{validation.precision}; {validation.device}, {count(validation.threads, 'thread')} per worker; "
        f"{len(validation.rows)} measurements of {count(validation.plans, 'plan')}; "
        f"{count(validation.blocks, 'block')} of {count(validation.steps, 'step')}; predicted with "
        f"cluster {validation.cluster}"
    )


def subsets(plans: Sequence[ValidatedPlan]) -> list[tuple[str, list[ValidatedPlan]]]:
    """Return the subsets that have statistics: all, held out, each group of workers and batch, each
    kind of plan."""
    named = [("all", list(plans)), ("held out", [plan for plan in plans if plan.held_out])]
    competing = groups(plans)
    if len(competing) > 1:
        named += [
            (f"{workers} workers, batch {batch}", group) for (workers, batch), group in competing.items()
        ]
    named += [(f"{kind} plans", [plan for plan in plans if plan.kind == kind]) for kind in KINDS]
    return [(name, chosen) for name, chosen in named if chosen]


def summary(plans: Sequence[ValidatedPlan]) -> list[list[str]]:
    """Return one line of cells under `SUMMARY` for each subset."""
    return [_line(name, statistics(chosen)) for name, chosen in subsets(plans)]


def _line(name: str, found: Statistics) -> list[str]:
    terms = found.terms
    of_a_kind = name.endswith("plans")  # plans of one kind do not compete: no rank, no regret
    return [
        name,
        str(found.rows),
        percent(found.mean),
        percent(found.largest),
        "-" if found.tau is None or of_a_kind else f"{found.tau:.3f}",
        "-" if of_a_kind else f"{found.regret:.3f}",
        signed_percent(terms.compute + terms.exposed + terms.idle),
        signed_percent(terms.compute),
        signed_percent(terms.exposed),
        signed_percent(terms.idle),
    ]


def verdict(plans: Sequence[ValidatedPlan]) -> str:
    """Return whether the held-out plans, or all if none is held out, meet the targets."""
    held_out = [plan for plan in plans if plan.held_out]
    which = "held-out plans" if held_out else "all plans; none is held out"
    missed = statistics(held_out or plans).missed()
    return f"Targets missed ({which}): {'; '.join(missed)}." if missed else f"All targets are met ({which})."
