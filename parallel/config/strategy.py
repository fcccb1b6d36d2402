"""Options that all strategies share; each strategy defines its own in `parallel/strategies/`.

Other strategies have no file there: `searched`, whose plan comes from a search and whose options are
in this folder, and the peers (`peer.py`), which have an engine instead of a plan.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

BASELINE = "single"
"""Name of the strategy that speedups are measured against: the whole network on one worker."""
PIPELINES = ("fill_drain", "1f1b")
UPDATES = ("step", "pass")


@dataclass(frozen=True)
class StrategyConfig:
    """The strategy; subclasses add its options."""

    name: str

    fixed_workers: ClassVar[int | None] = None
    """Number of workers that the strategy requires. None: any number."""
    baseline: ClassVar[bool] = False
    """Whether speedups are measured against this strategy."""
    makes_plan: ClassVar[bool] = True
    """Whether the strategy makes a plan. False: an outside reference with its own engine."""

    @property
    def scheme(self) -> str | None:
        """Name of the scheme. None: the strategy has only one."""
        return None

    @property
    def label(self) -> str:
        """Name and scheme."""
        return " ".join(filter(None, (self.name, self.scheme)))

    def full_label(self, plan: str | None) -> str:
        """Return the label with everything that distinguishes runs of this strategy.

        These are options with other values than their defaults and, for a plan from a file, its
        fingerprint `plan`.
        """
        changed = [
            f"{option.name}={value}"
            for option in dataclasses.fields(self)
            if option.name not in ("name", "scheme")
            and (value := getattr(self, option.name)) != option.default
        ]
        return " ".join([self.label, *changed])
