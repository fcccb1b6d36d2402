"""Statistics of tables, compared with values computed by hand or by R."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.results.statistics import Speedup, speedup, speedup_of_rounds, speedup_of_runs, summarise


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
    assert speedup([1.0, 3.0], [1.0, 1.0], confidence=0.6) == Speedup(2.0, 1.0, 3.0, "within-run")
    assert speedup([1.0, 3.0], [1.0, 1.0], confidence=0.4) == Speedup(2.0, 2.0, 2.0, "within-run")


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


def drawn_runs(
    rng: np.random.Generator, runs: int, median: float, between: float = 0.02
) -> list[list[float]]:
    """Return epoch times of runs that vary between each other, and within by 1 %."""
    levels = median * rng.lognormal(0, between, runs)
    return [(level * rng.lognormal(0, 0.01, 6)).tolist() for level in levels]


@pytest.mark.parametrize("runs", [3, 5])
def test_intervals_across_runs_cover_as_often_as_they_say(runs: int) -> None:
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(300):
        s = speedup_of_runs(drawn_runs(rng, runs, 2.0), drawn_runs(rng, runs, 1.0))
        assert s.low is not None and s.high is not None and s.covers == "runs"
        held += s.low <= 2.0 <= s.high
    assert 0.93 <= held / 300 <= 0.99


def test_an_interval_within_a_run_is_too_narrow_for_other_runs() -> None:
    """Why it is marked."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(100):
        (base,), (ours,) = drawn_runs(rng, 1, 2.0), drawn_runs(rng, 1, 1.0)
        s = speedup_of_runs([2 * base], [2 * ours])
        assert s.low is not None and s.high is not None and s.covers == "within-run"
        held += s.low <= 2.0 <= s.high
    assert held < 50


def test_few_epochs_of_single_runs_give_no_interval() -> None:
    few, many = [10.0, 11.0] * 4, [5.0, 6.0] * 5
    assert speedup_of_runs([few], [many]) == Speedup(10.5 / 5.5)
    assert speedup_of_runs([few, few], [many]).covers == "within-run", "16 epochs and 10"
    assert speedup_of_runs([few], [many, many]).covers is None


def test_variation_within_runs_counts_where_runs_agree() -> None:
    run = [10.0, 11.0, 12.0, 13.0]
    wide, narrow = speedup_of_runs([run, run], [run, run]), speedup_of_runs([[10.0]] * 2, [[5.0]] * 2)
    assert wide.low is not None and wide.low < 0.9 and wide.ratio == 1.0
    assert (narrow.low, narrow.ratio, narrow.high) == pytest.approx((2.0, 2.0, 2.0))


def test_wild_runs_have_a_finite_interval() -> None:
    s = speedup_of_runs([[1e-9], [1e9]], [[1e9], [1e-9]])
    assert s.low is not None and s.high is not None and 0 < s.low < s.high < float("inf")


def test_an_interval_of_rounds_is_that_of_the_paired_t_test() -> None:
    # R: t.test(log(c(8, 10, 12)), log(c(4, 4, 6)), paired = TRUE) on runs of one epoch:
    # differences log 2, log 2.5, log 2; mean 0.7675284, standard error 0.0743812, t(2) 4.3026527.
    s = speedup_of_rounds([[8.0], [10.0], [12.0]], [[4.0], [4.0], [6.0]])
    assert s.covers == "rounds"
    expected = [math.exp(0.7675284 + t * 4.3026527 * 0.0743812) for t in (-1, 0, 1)]
    assert [s.low, s.ratio, s.high] == pytest.approx(expected, rel=1e-6)


def test_rounds_count_by_the_medians_of_their_runs_and_not_by_their_epochs() -> None:
    s = speedup_of_rounds([[2.0, 2.0, 90.0], [20.0]], [[1.0], [5.0, 1.0, 5.0]])
    assert s.ratio == pytest.approx(math.sqrt(2.0 * 4.0))


def test_variation_within_runs_counts_where_rounds_agree() -> None:
    run = [10.0, 11.0, 12.0, 13.0]
    wide, narrow = speedup_of_rounds([run, run], [run, run]), speedup_of_rounds([[10.0]] * 2, [[5.0]] * 2)
    assert wide.low is not None and wide.low < 0.8 and wide.ratio == 1.0
    assert (narrow.low, narrow.ratio, narrow.high) == pytest.approx((2.0, 2.0, 2.0))


def test_rounds_need_a_run_of_each_side() -> None:
    with pytest.raises(ValueError, match="strategy_s=1 must have 2 runs"):
        speedup_of_rounds([[1.0], [2.0]], [[1.0]])
    with pytest.raises(ValueError, match="baseline_s=1 must have at least two runs"):
        speedup_of_rounds([[1.0]], [[1.0]])


TIMES = st.lists(st.floats(0.5, 2.0), min_size=1, max_size=3)
ROUNDS = st.lists(st.tuples(TIMES, TIMES, st.floats(0.01, 100.0)), min_size=2, max_size=6)


@given(ROUNDS)
def test_what_slows_a_whole_round_changes_nothing(
    rounds: list[tuple[list[float], list[float], float]],
) -> None:
    base, ours = [a for a, _, _ in rounds], [b for _, b, _ in rounds]
    plain = speedup_of_rounds(base, ours)
    assert plain.low is not None and plain.high is not None
    assert plain.low <= plain.ratio <= plain.high, "the estimate lies in its interval"
    slowed = [[[t * factor for t in side] for side in (a, b)] for a, b, factor in rounds]
    found = speedup_of_rounds([a for a, _ in slowed], [b for _, b in slowed])
    assert (found.low, found.ratio, found.high) == pytest.approx((plain.low, plain.ratio, plain.high))
    turned = speedup_of_rounds(ours, base)
    assert (turned.low, turned.ratio, turned.high) == pytest.approx(
        (1 / plain.high, 1 / plain.ratio, 1 / plain.low)
    )


@pytest.mark.parametrize("rounds", [3, 5])
def test_intervals_of_rounds_hold_and_are_narrow_whatever_slows_the_rounds(rounds: int) -> None:
    """With slow and fast rounds, 20 % apart, and a strategy that varies more than the baseline."""
    rng = np.random.default_rng(1)
    held, widths = 0, []
    for _ in range(300):
        slow = rng.lognormal(0, 0.2, rounds)
        sides = [drawn_runs(rng, rounds, median, between) for median, between in ((2.0, 0.01), (1.0, 0.02))]
        base, ours = ([[t * f for t in run] for run, f in zip(side, slow, strict=True)] for side in sides)
        paired, independent = speedup_of_rounds(base, ours), speedup_of_runs(base, ours)
        assert paired.low is not None and paired.high is not None
        assert independent.low is not None and independent.high is not None
        held += paired.low <= 2.0 <= paired.high
        widths.append(math.log(independent.high / independent.low) / math.log(paired.high / paired.low))
    assert 0.93 <= held / 300 <= 0.99
    assert np.median(widths) > 4
