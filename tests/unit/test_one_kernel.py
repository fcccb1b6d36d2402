"""Functions that are one kernel on a GPU: what torch.compile makes of them, here without a compiler."""

from __future__ import annotations

import pytest

from parallel.graph.ops import one_kernel


def test_why_a_function_cannot_be_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert one_kernel.no_triton((7, 0)) is None and one_kernel.no_triton((12, 1)) is None
    assert one_kernel.no_triton((6, 0)) == "this GPU has compute capability 6.0, and Triton needs 7.0"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert str(one_kernel.no_triton((9, 0))).startswith("triton is not installed")
