"""What the options of every strategy have in common; a strategy's own are beside its plan, in `parallel/strategies/`.

Two strategies have no file there, and their options are in this folder: `searched`, whose plan a search finds, and
`ddp`, which has an engine and no plan.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

BASELINE = "single"
"""The strategy that speedups are measured against: the whole network on one worker."""
PIPELINES = ("fill_drain", "1f1b")
UPDATES = ("step", "pass")


@dataclass(frozen=True)
class StrategyConfig:
    """Which strategy; a subclass adds the options that belong to it."""

    name: str

    fixed_workers: ClassVar[int | None] = None
    """Number of workers that the strategy always takes. None: any number."""
    makes_plan: ClassVar[bool] = True
    """False: an outside reference, which trains without a plan of ours."""

    @property
    def scheme(self) -> str | None:
        """Which of several plans of the same name. None: there is only one."""
        return None

    @property
    def label(self) -> str:
        """Name and scheme."""
        return " ".join(filter(None, (self.name, self.scheme)))

    def full_label(self, plan: str | None) -> str:
        """Return the label with all that tells a run of it from others: options that are not at their defaults, and
        for a plan that was read from a file its fingerprint `plan`."""
        changed = [f"{option.name}={value}" for option in dataclasses.fields(self)
                   if option.name not in ("name", "scheme") and (value := getattr(self, option.name)) != option.default]
        return " ".join([self.label, *changed])
