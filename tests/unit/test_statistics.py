"""Statistics of tables, compared with values computed by hand or by R."""

from __future__ import annotations

import numpy as np
import pytest

from parallel.results.statistics import Speedup, speedup, summarise


def test_summary_is_r_type_7() -> None:
    # R: summary(c(1, 2, 4, 8, 16, 32)) gives 1.0 2.5 6.0 10.5 14.0 32.0
    assert summarise([32, 1, 16, 2, 8, 4]).as_tuple() == (1.0, 2.5, 6.0, 10.5, 14.0, 32.0)


def test_summary_of_one_value() -> None:
    assert summarise([3.5]).as_tuple() == (3.5,) * 6


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_summary_refuses(values: list[float]) -> None:
    with pytest.raises(ValueError, match="values="):
        summarise(values)


def test_speedup_is_the_ratio_of_medians() -> None:
    # The means would give 13.0 / 5.0.
    assert speedup([9.0, 10.0, 20.0], [4.0, 5.0, 6.0]).ratio == 2.0


def test_interval_holds_the_ratio_and_repeats() -> None:
    rng = np.random.default_rng(3)
    base, ours = (10 + rng.random(20)).tolist(), (5 + rng.random(20)).tolist()
    one = speedup(base, ours)
    assert one.low is not None and one.high is not None
    assert one.low < one.ratio < one.high
    assert one == speedup(base, ours)
    assert one != speedup(base, ours, seed=1)


def test_interval_takes_half_of_what_is_left_from_each_end() -> None:
    # Medians of two draws from (1, 3): 1, 2 and 3 with probabilities 1/4, 1/2, 1/4.
    assert speedup([1.0, 3.0], [1.0, 1.0], confidence=0.6) == Speedup(2.0, 1.0, 3.0)
    assert speedup([1.0, 3.0], [1.0, 1.0], confidence=0.4) == Speedup(2.0, 2.0, 2.0)


def test_interval_is_that_of_plain_resampling() -> None:
    rng = np.random.default_rng(7)
    base, ours = 10 * rng.lognormal(0, 0.1, 40), 5 * rng.lognormal(0, 0.1, 40)
    ratios = [np.median(rng.choice(base, 40)) / np.median(rng.choice(ours, 40)) for _ in range(10_000)]
    low, high = np.quantile(ratios, (0.025, 0.975))
    found = speedup(base.tolist(), ours.tolist())
    assert (found.low, found.high) == (
        pytest.approx(low, abs=0.03 * (high - low)),
        pytest.approx(high, abs=0.03 * (high - low)),
    )


def test_interval_covers_as_often_as_it_says() -> None:
    """About 95 % of the intervals from 200 draws contain the true ratio 2; percentile intervals
    slightly fewer."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        s = speedup(
            (2 * rng.lognormal(0, 0.1, 25)).tolist(), rng.lognormal(0, 0.1, 25).tolist(), resamples=400
        )
        assert s.low is not None and s.high is not None
        held += s.low <= 2.0 <= s.high
    assert 0.90 <= held / 200 <= 0.99


@pytest.mark.parametrize(("base", "ours"), [([10.0], [5.0, 5.1]), ([10.0, 11.0], [5.0])])
def test_one_epoch_gives_no_interval(base: list[float], ours: list[float]) -> None:
    s = speedup(base, ours)
    assert s.low is None and s.high is None
    assert str(Speedup(2.0)) == "2.00×" and str(Speedup(2.0, 1.9, 2.1)) == "2.00× [1.90, 2.10]"


def test_speedup_refuses_times_that_are_none() -> None:
    with pytest.raises(ValueError, match="strategy_s=.*positive"):
        speedup([1.0], [0.0])
