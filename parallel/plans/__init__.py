"""Plans: what they are, how they are checked and read. `python -m parallel.plan` shows one; see `__main__`."""

from __future__ import annotations

from parallel.plans.files import read_plan
from parallel.plans.plan import SCHEMES, Layout, Plan, check_batch, follow, make_plan

__all__ = ["SCHEMES", "Layout", "Plan", "check_batch", "follow", "make_plan", "read_plan"]
