"""What a plan costs before it runs: prices of its parts, the timeline they make, and drawings of it."""

from __future__ import annotations

from parallel.simulator.cost_model import CostModel, Sync, Traffic

__all__ = ["CostModel", "Sync", "Traffic"]
