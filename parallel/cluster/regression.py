"""A regression that predicts the times of ops in shapes that were not measured.

    features x   log of multiply-adds, elements read, elements written, parameters, rows, channels
                 in and out, feature map, kernel and stride; whether the part is cut; the pass
    target   y   log(seconds / estimate)
    estimate     overhead + multiply-adds / speed + elements / bandwidth, fitted by least squares
    model        support vector regression with a Gaussian kernel: one for each kind of op with
                 enough shapes, and one for the rest (as in the HPE Deep Learning Cookbook)

The logarithm makes errors relative; the estimate makes extrapolation possible. Fitting is
deterministic. Accuracy is cross-validated by shape: the model is never fitted to another pass of a
held-out shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR

from parallel.cluster.op_key import OpKey
from parallel.cluster.table import BACKWARD, FORWARD, PARAMETERS, Ops

Sample = tuple[OpKey, str]
"""Key of an op's part, and the pass."""

C, EPSILON, GAMMA = 10.0, 0.02, 0.03
"""Hyperparameters: penalty of an error, relative error without penalty, inverse width of the
kernel. Chosen by the cross-validated error on AlexNet at 64 pixels, where they are as good as
gradient boosting and fit 50 times faster."""
FEWEST = 12
"""Number of samples from which a kind of op has its own model."""
FOLDS = 5


@dataclass(frozen=True)
class FittedModels:
    """Fitted models by kind of op; the kind "" is for all other kinds."""

    models: Mapping[str, tuple[np.ndarray, Any]]
    """Coefficients of the estimate, and the regression of the remaining factor."""

    def predict(self, samples: Sequence[Sample]) -> np.ndarray:
        """Return the seconds of each sample."""
        seconds = np.empty(len(samples))
        by_kind: dict[str, list[int]] = {}
        for i, (key, _) in enumerate(samples):
            by_kind.setdefault(key.kind if key.kind in self.models else "", []).append(i)
        for kind, indices in by_kind.items():
            chosen = [samples[i] for i in indices]
            estimate, model = self.models[kind]
            seconds[indices] = _terms(chosen) @ estimate * np.exp(model.predict(_features(chosen)))
        return seconds


def fit(ops: Ops) -> FittedModels:
    """Return the models fitted to measured times."""
    samples = sorted(ops, key=lambda sample: (sample[0].head, sample[0].shapes, sample[1]))
    seconds = np.array([ops[sample].mean_s for sample in samples])
    kinds = [key.kind for key, _ in samples]
    models = {"": _fit_one(samples, seconds)}
    for kind in sorted(set(kinds)):
        own = [i for i, of in enumerate(kinds) if of == kind]
        if len(own) >= FEWEST:
            models[kind] = _fit_one([samples[i] for i in own], seconds[own])
    return FittedModels(models)


@dataclass(frozen=True)
class Accuracy:
    """Cross-validated errors |predicted ÷ measured − 1| for one kind of op."""

    kind: str
    samples: int
    median: float
    mean: float
    largest: float
    of_time: float
    """Sum of |predicted − measured| ÷ sum of measured: the error weighted by time."""


def cross_validate(ops: Ops) -> list[Accuracy]:
    """Return the errors on held-out shapes by kind of op, then for all kinds.

    Empty for fewer than two shapes.
    """
    samples = sorted(ops, key=lambda sample: (sample[0].head, sample[0].shapes, sample[1]))
    groups = [f"{key.head} {key.shapes}" for key, _ in samples]
    folds = min(FOLDS, len(set(groups)))
    if folds < 2:
        return []
    measured = np.array([ops[sample].mean_s for sample in samples])
    predicted = np.empty(len(samples))
    for train, test in GroupKFold(folds).split(samples, groups=groups):
        model = fit({samples[i]: ops[samples[i]] for i in train})
        predicted[test] = model.predict([samples[i] for i in test])
    errors = np.abs(predicted / measured - 1)
    weighted = np.abs(predicted - measured)
    kinds = np.array([key.kind for key, _ in samples])
    rows = []
    for kind in [*sorted(set(kinds)), "all"]:
        own = kinds == kind if kind != "all" else np.ones(len(kinds), dtype=bool)
        rows.append(
            Accuracy(
                str(kind),
                int(own.sum()),
                float(np.median(errors[own])),
                float(errors[own].mean()),
                float(errors[own].max()),
                float(weighted[own].sum() / measured[own].sum()),
            )
        )
    return rows


def _fit_one(samples: Sequence[Sample], seconds: np.ndarray) -> tuple[np.ndarray, Any]:
    terms = _terms(samples)
    # Dividing rows by their times makes this a least-squares fit of relative errors.
    line = LinearRegression(positive=True, fit_intercept=False)
    estimate = line.fit(terms / seconds[:, None], np.ones(len(seconds))).coef_
    model = make_pipeline(StandardScaler(), SVR(kernel="rbf", C=C, epsilon=EPSILON, gamma=GAMMA))
    model.fit(_features(samples), np.log(seconds / (terms @ estimate)))
    return estimate, model


def _terms(samples: Sequence[Sample]) -> np.ndarray:
    """Return the terms of the estimate [samples, 4]."""
    rows = []
    for key, name in samples:
        passes = {FORWARD: 1, PARAMETERS: 1, BACKWARD: 2 if key.parameters else 1}[name]
        rows.append(
            [
                1.0,
                key.multiply_adds * passes,
                (key.elements_in + key.elements_out) * passes,
                key.parameters * passes,
            ]
        )
    return np.array(rows)


def _features(samples: Sequence[Sample]) -> np.ndarray:
    """Return the features [samples, features]."""
    rows = []
    for key, name in samples:
        into, out = key.inputs[0], key.output
        amounts = [
            key.multiply_adds,
            key.elements_in,
            key.elements_out,
            key.parameters,
            out[0],
            into[1] if len(into) > 1 else 1,
            out[1] if len(out) > 1 else 1,
            math.prod(out[2:3]),
            math.prod(out[3:4]),
            key.setting("kernel", 1),
            key.setting("stride", 1),
        ]
        rows.append(
            [
                *(math.log(1 + amount) for amount in amounts),
                float(key.settings.endswith("cut")),
                float(name == BACKWARD),
                float(name == PARAMETERS),
            ]
        )
    return np.array(rows)
