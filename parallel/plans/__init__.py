"""Plans: layouts, plans, their checks, their text forms and files."""

from __future__ import annotations

from parallel.plans.files import read_plan
from parallel.plans.layout import Layout, check_layout, follow, follow_cuts
from parallel.plans.plan import SCHEMES, Plan, check_batch, make_plan

__all__ = [
    "SCHEMES",
    "Layout",
    "Plan",
    "check_batch",
    "check_layout",
    "follow",
    "follow_cuts",
    "make_plan",
    "read_plan",
]
