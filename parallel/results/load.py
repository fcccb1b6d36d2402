"""How busy a run's machines were with other things."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.config import require, require_number
from parallel.config.checks import MOST_WORKERS

MOST_MHZ = 10**6


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a run's machines did besides it during its timed epochs: of several hosts, the busiest.

    None: the system does not tell.
    """

    processes: float | None = None
    """Mean number of other processes that ran on the cores that the workers may use: CPU time of
    others ÷ time."""
    steal: float | None = None
    """Fraction of the cores' time that the hypervisor gave to other virtual machines."""
    clock_mhz: float | None = None
    """Mean clock of the cores at the ends of epochs; of several hosts, the slowest."""

    def __post_init__(self) -> None:
        require_number("load.processes", self.processes, 0, MOST_WORKERS)
        require(
            self.steal is None or 0 <= self.steal <= 1,
            "load.steal",
            self.steal,
            "must be a fraction from 0 to 1",
        )
        require_number("load.clock_mhz", self.clock_mhz, 0, MOST_MHZ)
