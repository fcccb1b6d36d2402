"""Private interfaces of torch that the runtime uses exist and have the same meaning."""

from __future__ import annotations

from torch.profiler import ProfilerActivity, profile

from parallel.runtime.torch_private import profiler_is_active


def test_an_active_profiler_is_seen() -> None:
    assert not profiler_is_active()
    with profile(activities=[ProfilerActivity.CPU]):
        assert profiler_is_active()
    assert not profiler_is_active()
