"""Records of earlier formats.

Format 1 had neither `label` nor `baseline`. Format 2 had no `attempts`, and its epochs neither
`checkpoint_s` nor `timed`.
"""

from __future__ import annotations

from typing import Any

from parallel.config.typed import structure
from parallel.results.records import FORMAT, plan_fingerprint

DEFAULTS = {
    "micro_batches": 1,
    "pipeline": "1f1b",
    "update": "step",
    "bucket_mb": 25.0,
    "method": "exact",
    "seed": 0,
    "time_limit_s": 60.0,
    "candidates": 3,
    "confirm": False,
    "confirm_steps": 5,
    "plans": ".cache/parallel/plans",
}
"""Options of all strategies in format 1."""
NUM_CLASSES = 1000
"""Default of data.num_classes in format 1, where all data sets had it but only synthetic read
it."""


NEW_COLUMNS = ("checkpoint_s", "timed")
"""Columns of epochs.csv that formats 1 and 2 did not have."""


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a record file of any format as those of the newest."""
    if values["format"] == 1:
        values = _from_format_1(values)
    return {**values, "format": FORMAT}


def _from_format_1(values: dict[str, Any]) -> dict[str, Any]:
    config = structure(dict[str, Any], values.get("config", {}), "config")
    options = structure(dict[str, Any], config.get("strategy", {}), "config.strategy")
    words = [values.get("strategy"), values.get("scheme")]
    words += [
        f"{name}={value}" for name, value in options.items() if name in DEFAULTS and value != DEFAULTS[name]
    ]
    if options.get("path") is not None and isinstance(values.get("plan"), str):
        words.append(f"plan {plan_fingerprint(values['plan'])}")
    data = structure(dict[str, Any], config.get("data", {}), "config.data")
    if data.get("num_classes") == NUM_CLASSES:
        data = {name: value for name, value in data.items() if name != "num_classes"}
    return {
        **values,
        "config": {**config, "data": data},
        "label": " ".join(str(word) for word in words if word is not None),
        "baseline": values.get("strategy") == "single" and values.get("workers") == 1,
    }
