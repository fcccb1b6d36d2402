"""A machine with GPUs, imitated: only tests that need one see them."""

from __future__ import annotations

import os
from unittest.mock import patch

import pytest
import torch

from parallel.config import ClusterConfig
from parallel.runtime.communication.device import choose_device
from tests.support.commands import variables
from tests.support.gpu import VISIBLE, HiddenGpus


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("shown", [None, "3,4"])
def test_a_machine_with_gpus(count: int, shown: str | None) -> None:
    environment = {key: value for key, value in os.environ.items() if key != VISIBLE}
    environment |= {} if shown is None else {VISIBLE: shown}
    with (
        patch.dict(os.environ, environment, clear=True),
        patch("torch.cuda.is_available", lambda: True),
        patch("torch.cuda.device_count", lambda: count),
    ):
        hidden = HiddenGpus()
        assert choose_device(ClusterConfig()).type == "cuda"
        hidden.hide()
        try:
            assert choose_device(ClusterConfig()).type == "cpu"
            assert variables()[VISIBLE] == os.environ[VISIBLE] == ""
            with hidden.shown():
                assert torch.cuda.device_count() == count and os.environ.get(VISIBLE) == shown
                assert choose_device(ClusterConfig()).type == "cuda"
            assert not torch.cuda.is_available() and os.environ[VISIBLE] == ""
        finally:
            for each in reversed(hidden._patches):
                each.stop()


def test_this_test_sees_no_gpu() -> None:
    assert not torch.cuda.is_available() and torch.cuda.device_count() == 0 and os.environ[VISIBLE] == ""
