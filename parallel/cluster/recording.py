"""Compute times that note which of them no calibration has measured."""

from __future__ import annotations

from dataclasses import dataclass, field

from parallel.cluster.cluster import Compute
from parallel.cluster.measured import Measured
from parallel.cluster.roofline import is_view
from parallel.graph.ops import Op, Part


@dataclass
class RecordingCompute:
    """The times of another `Compute`; notes the ops that it had to predict."""

    compute: Compute
    predicted: set[str] = field(default_factory=set)
    """Names of ops that a part was asked of which was not measured."""

    @property
    def learned(self) -> bool:
        """Whether a regression or a data sheet answered any request."""
        return bool(self.predicted)

    def forward_s(self, op: Op, part: Part, precision: str) -> float:
        if not is_view(op) and not part.box.empty:
            measured = isinstance(self.compute, Measured) and self.compute.is_measured(op, part, precision)
            if not measured:
                self.predicted.add(op.name)
        return self.compute.forward_s(op, part, precision)

    def backward_s(self, op: Op, part: Part, precision: str, input_gradient: bool) -> float:
        return self.compute.backward_s(op, part, precision, input_gradient)

    def update_s(self, parameters: int, precision: str) -> float:
        return self.compute.update_s(parameters, precision)

    def add_s(self, elements: int, precision: str) -> float:
        return self.compute.add_s(elements, precision)

    def copy_s(self, elements: int, precision: str) -> float:
        return self.compute.copy_s(elements, precision)

    def precisions(self) -> tuple[str, ...]:
        return self.compute.precisions()
