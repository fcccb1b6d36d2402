"""Rules of the manifest of a checkpoint."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from parallel.checkpoints.manifest import Begun
from tests.support.made_checkpoints import made_manifest


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": 2}, "format=2 cannot be read; this version reads 1"),
        ({"workers": 0}, "workers=0 must be at least 1"),
        ({"steps_per_epoch": 0}, "steps_per_epoch=0 must be at least 1"),
        ({"epochs": made_manifest(2).epochs}, "step=3 must be 2, the steps of its epochs"),
        ({"steps_per_epoch": 2}, "step=3 must be 6, the steps of its epochs"),
        ({"time": float("nan")}, "time=nan must be a time in seconds"),
        (
            {"begun": Begun(steps=1, seconds=1.0, loss=1.0, bytes_sent=0)},
            "begun.steps=1 must be fewer than an epoch's",
        ),
    ],
)
def test_rules_of_manifests(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        made_manifest(**changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"seconds": -1.0}, "seconds=-1.0 must be a time in seconds"),
        ({"seconds": float("inf")}, "seconds=inf must be a time in seconds"),
        ({"bytes_sent": -1}, "bytes_sent=-1 must not be negative"),
    ],
)
def test_rules_of_begun_epochs(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        dataclasses.replace(Begun(steps=1, seconds=1.0, loss=1.0, bytes_sent=0), **changes)


def test_an_epoch_under_way() -> None:
    begun = Begun(steps=3, seconds=1.0, loss=1.0, bytes_sent=0)
    assert made_manifest(step=7, steps_per_epoch=4, epochs=made_manifest(1).epochs, begun=begun).step == 7
