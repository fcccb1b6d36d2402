"""Compute times from a table of measurements, and from a regression for other shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from parallel.cluster.op_key import OpKey
from parallel.cluster.regression import FittedModels, Sample, fit
from parallel.cluster.roofline import is_view
from parallel.cluster.table import BACKWARD, FORWARD, PARAMETERS, Table
from parallel.config import require
from parallel.graph.ops import Op, Part

Question = tuple[Op, Part, str, bool]
"""Op, part, pass, and whether the backward pass computes the input's gradient."""


@dataclass(frozen=True)
class Measured:
    """Compute times of one worker, looked up or predicted, and memoised."""

    table: Table = field(hash=False)
    _answers: dict[tuple[str, Sample], float] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )
    _models: dict[str, FittedModels] = field(default_factory=dict, init=False, compare=False, repr=False)

    def precisions(self) -> tuple[str, ...]:
        return tuple(self.table.ops)

    def forward_s(self, op: Op, part: Part, precision: str) -> float:
        return self.predict_many([(op, part, FORWARD, True)], precision)[0]

    def backward_s(self, op: Op, part: Part, precision: str, input_gradient: bool) -> float:
        return self.predict_many([(op, part, BACKWARD, input_gradient)], precision)[0]

    def update_s(self, parameters: int, precision: str) -> float:
        self._check(precision)
        return self.table.update[precision].seconds(parameters)

    def add_s(self, elements: int, precision: str) -> float:
        self._check(precision)
        return self.table.add[precision].seconds(elements)

    def copy_s(self, elements: int, precision: str) -> float:
        self._check(precision)
        return self.table.copy[precision].seconds(elements)

    def is_measured(self, op: Op, part: Part, precision: str) -> bool:
        """Return whether the forward time of the part was measured, not predicted."""
        return (OpKey.of(op, part), FORWARD) in self.table.ops.get(precision, {})

    def predict_many(self, questions: Sequence[Question], precision: str) -> list[float]:
        """Return the seconds for each question, with one call of the regression for all."""
        self._check(precision)
        samples = [_sample(*question) for question in questions]
        known, missing = self.table.ops[precision], []
        for sample in samples:
            if sample is None or (precision, sample) in self._answers:
                continue
            if sample in known:
                self._answers[precision, sample] = known[sample].mean_s
            else:
                missing.append(sample)
        if missing:
            if precision not in self._models:
                self._models[precision] = fit(known)
            for sample, seconds in zip(missing, self._models[precision].predict(missing), strict=True):
                self._answers[precision, sample] = float(seconds)
        return [0.0 if sample is None else self._answers[precision, sample] for sample in samples]

    def _check(self, precision: str) -> None:
        require(
            precision in self.table.ops,
            "trainer.precision",
            precision,
            f"was not calibrated on this cluster; it has {', '.join(self.table.ops)}",
        )


def _sample(op: Op, part: Part, name: str, input_gradient: bool) -> Sample | None:
    """Return the entry to look up; None if the pass computes nothing."""
    if is_view(op) or part.box.empty:
        return None
    if name == BACKWARD and not input_gradient:
        return (OpKey.of(op, part), PARAMETERS) if op.parameters else None
    return OpKey.of(op, part), name
