"""Expect an error with exactly one sentence."""

from __future__ import annotations

import re

import pytest


def refused(sentence: str) -> pytest.RaisesExc[ValueError]:
    """Expect a `ValueError` whose whole message is `sentence`."""
    return pytest.raises(ValueError, match=f"^{re.escape(sentence)}$")
