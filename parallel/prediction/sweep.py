"""Predict every combination of a sweep, or say why there is no prediction for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from parallel.config import Config, one_line
from parallel.prediction.predict import Prediction, Predictor


@dataclass(frozen=True, eq=False)
class Combination:
    """One combination of the values that a sweep varies."""

    values: Mapping[str, str]
    """The varied values as typed, by key."""
    config: Config | None
    prediction: Prediction | None = None
    reason: str = ""
    """Why the configuration or the prediction is missing."""


def predict_all(combinations: Iterable[Combination], weak: bool = False) -> list[Combination]:
    """Return the combinations with their predictions, or with the reason why there is none."""
    predictor, result = Predictor(), []
    for combination in combinations:
        if combination.config is not None:
            try:
                prediction = predictor.predict(combination.config, weak)
                combination = dataclasses.replace(combination, prediction=prediction)
            except ValueError as error:
                combination = dataclasses.replace(combination, reason=one_line(error))
        result.append(combination)
    return result
