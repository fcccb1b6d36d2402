"""How the sections share the time: each has a share of what is left, in proportion to its weight.

    limit of section i = time left · weight of i / sum of the weights of i and all that follow

So what a section does not need, the others get.
"""

from __future__ import annotations

from collections.abc import Sequence

WEIGHTS = {"machine": 1, "tests": 5, "parity": 5, "speed": 11, "prediction": 5, "profile": 2}
"""Minutes of each section out of 29, in the order in which they run; one is left for ending processes."""
LEAST_S = 5.0
"""A section with less time is not started."""


def limit_s(section: str, order: Sequence[str], left_s: float) -> float:
    """Return the time limit of a section when `left_s` are left; 0 if it is not worth a start."""
    following = order[order.index(section) :]
    limit = left_s * WEIGHTS[section] / sum(WEIGHTS[name] for name in following)
    return limit if limit >= LEAST_S else 0.0


def chosen(only: str) -> list[str]:
    """Return the sections that `--only` names, in their order. Raises `ValueError` for unknown ones."""
    names = [name.strip() for name in only.split(",") if name.strip()] or list(WEIGHTS)
    if unknown := [name for name in names if name not in WEIGHTS]:
        raise ValueError(f"--only={','.join(unknown)} must be some of {', '.join(WEIGHTS)}")
    return [name for name in WEIGHTS if name in names]
