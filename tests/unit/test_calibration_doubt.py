"""A calibration says when the times that it keeps were measured on a slower machine."""

from __future__ import annotations

from parallel.calibration.measure import doubt_of_stored_times


def test_parts_that_exceed_their_step_are_doubted() -> None:
    assert "1.71 × the step" in doubt_of_stored_times(step_s=0.4386, parts_s=0.7505)


def test_overhead_and_noise_are_no_doubt() -> None:
    assert (
        doubt_of_stored_times(step_s=0.47, parts_s=0.51)
        == doubt_of_stored_times(step_s=1.0, parts_s=0.5)
        == ""
    )
