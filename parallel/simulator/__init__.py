"""The simulator: costs of a plan's parts, the timeline that they make, and drawings of it."""

from __future__ import annotations

from parallel.simulator.cost_model import CostModel, Sync, Traffic

__all__ = ["CostModel", "Sync", "Traffic"]
