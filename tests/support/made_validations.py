"""Small complete validations for tests, equal except for explicit changes."""

from __future__ import annotations

from typing import Any

from parallel.results.validation import StepSplit, ValidatedPlan, Validation


def row(predicted_s: float, measured_s: float, name: str = "plan", **changes: Any) -> ValidatedPlan:
    """Return a plan whose prediction and measurement have 3/4 computing and 1/4 exposed
    communication."""
    values: dict[str, Any] = {
        "name": name,
        "kind": "named",
        "plan": f"plan of {name}",
        "workers": 2,
        "batch_size": 128,
        "held_out": False,
        "predicted_s": predicted_s,
        "measured_s": measured_s,
        "first_quartile_s": 0.9 * measured_s,
        "third_quartile_s": 1.1 * measured_s,
        "predicted": StepSplit(0.75 * predicted_s, 0.25 * predicted_s, 0.0),
        "measured": StepSplit(0.75 * measured_s, 0.25 * measured_s, 0.0),
        **changes,
    }
    return ValidatedPlan(**values)


def validation(*rows: ValidatedPlan, **changes: Any) -> Validation:
    values: dict[str, Any] = {
        "model": "alexnet owt",
        "image_size": 64,
        "num_classes": 10,
        "precision": "fp32",
        "cluster": "local 12345678",
        "device": "cpu: some",
        "threads": 1,
        "started": "2026-01-02T03:04:05+00:00",
        "command": "torchrun …",
        "blocks": 5,
        "steps": 2,
        "seed": 0,
        "environment": {"host": "bench"},
        "rows": rows,
        **changes,
    }
    return Validation(**values)
